# SPDX-License-Identifier: MIT
"""From the numbers of compare.py to ratios, floors and Markdown. Nothing here measures."""

import statistics

OURS = "butterfly"
NAMES = {
    "butterfly": "butterfly",
    "eigen": "Eigen blocked",
    "openblas": "OpenBLAS blocked",
    "onednn": "oneDNN blocked",
    "ggml": "ggml",
    "torch_sdpa": "PyTorch SDPA",
    "torch_folded": "PyTorch SDPA, group folded into rows",
    "torch_flex": "PyTorch FlexAttention, compiled",
}
PACKED = ("8bit", "4bit")  # keys and values
# The units of a type, each by its limit of machine_limits. f16 is multiplied and summed in float by all who keep its
# range; a kernel that sums in half precision is not held against this floor. Packed numbers can be multiplied as bytes.
UNITS = {
    "f32": ("fma_f32_build", "fma_f32_avx2", "fma_f32_avx512"),
    "f16": ("fma_f32_build", "fma_f32_avx2", "fma_f32_avx512"),
    "bf16": ("fma_f32_build", "fma_f32_avx2", "fma_f32_avx512", "dot_bf16_avx512", "amx_bf16_registers"),
    **dict.fromkeys(PACKED, ("fma_f32_build", "fma_f32_avx2", "fma_f32_avx512", "dot_int8_avx512", "amx_int8_registers")),
}
ELEMENTS = tuple(UNITS)
KINDS = {
    "prefill": "Causal prefill",
    "sparse": "Block-sparse prefill: blocks of 128 tokens, block b sees b, b - 1, b - 8 and 0",
    "decode": "Decode: one query, all keys",
}


def median(values):
    return statistics.median(values)


def spread(values):
    """Slowest less fastest, over the median."""
    return (max(values) - min(values)) / median(values)


def best_limit(limits, kind, names, threads):
    """The highest limit among `names` at so many threads, or None. Its best repetition counts: a floor is what can be."""
    fitting = [x for x in limits["limits"]
               if x["kind"] == kind and x["name"] in names and x["threads"] == threads and x["present"]]
    return max(fitting, key=lambda x: x["best"], default=None)


def level_of(limits, bytes_read, threads):
    """The smallest cache that holds half of so many bytes, L1 and L2 once per thread; dram where none does. A half: what
    is read again may be found in part, and a floor must not be too high."""
    caches = limits["caches"]
    for name, capacity in (("l1", caches["l1"] * threads), ("l2", caches["l2"] * threads), ("l3", caches["l3"])):
        if bytes_read <= 2 * capacity:
            return name
    return "dram"


def floor_of(limits, element, flops, bytes_read, threads):
    """Milliseconds below which no kernel can be by arithmetic and by reading, and the larger of them."""
    unit = best_limit(limits, "compute", UNITS[element], threads)
    read = best_limit(limits, "read", (level_of(limits, bytes_read, threads),), threads)
    if unit is None or read is None:
        return None
    flops_ms, bytes_ms = flops / unit["best"] * 1e-6, bytes_read / read["best"] * 1e-6
    return {"unit": unit["name"], "gflops": unit["best"], "flops_ms": flops_ms,
            "level": read["name"], "pattern": read["pattern"], "gb_per_s": read["best"], "bytes_ms": bytes_ms,
            "ms": max(flops_ms, bytes_ms)}


def timed(case):
    """Peers of a case that were timed, by name."""
    return {p["name"]: p for p in case["peers"] if p.get("ms")}


def best_peer(case):
    """Name and median of the fastest peer that is not us, or None."""
    others = {name: median(p["ms"]) for name, p in timed(case).items() if name != OURS}
    return min(others.items(), key=lambda item: item[1], default=None)


def ratio_to_best(case):
    """How many times faster we are than the fastest peer, or None."""
    best, ours = best_peer(case), timed(case).get(OURS)
    return best[1] / median(ours["ms"]) if best and ours else None


def ratio_to_own_bf16(data, case):
    """Of packed keys and values: how many times faster we are than we are in bf16 on that shape in that run, or None."""
    shape = ("kind", "keys", "head_dim", "threads")
    same = (c for c in data["cases"] if c["type"] == "bf16" and all(c[key] == case[key] for key in shape))
    bf16, ours = (timed(c).get(OURS) if c else None for c in (next(same, None), case))
    return median(bf16["ms"]) / median(ours["ms"]) if case["type"] in PACKED and bf16 and ours else None


def share_of_floor(case, which="ms"):
    """Of the larger floor (`ms`), `flops_ms` or `bytes_ms`: it over our time."""
    ours = timed(case).get(OURS)
    return case["floor"][which] / median(ours["ms"]) if ours and case.get("floor") else None


def digits(x):
    """Three significant digits without an exponent."""
    return f"{x:,.0f}".replace(",", " ") if x >= 100 else f"{x:.3g}"


def percent(x):
    return "-" if x is None else f"{100 * x:.0f} %" if x >= 0.01 else f"{100 * x:.1g} %"


def times(x):
    return "-" if x is None else f"{x:.2f}"


def markdown(header, rows):
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def cell(case, peer):
    """Rate for prefill, time for decode, with the spread."""
    if peer is None:
        return "-"
    ms = median(peer["ms"])
    value = digits(ms) if case["kind"] == "decode" else digits(case["flops"] / ms * 1e-6)
    if len(peer["ms"]) == 1:
        return f"{value} (one call)"
    return f"{value} ±{50 * spread(peer['ms']):.0f} %"


def ranged(values, text):
    """Median of some values and their range; "-" without any."""
    if not values:
        return "-"
    return f"{text(median(values))}, {text(min(values))} to {text(max(values))}"


def summary_table(data):
    """One row for each kind of work and type; "" without cases that we were timed in."""
    rows = []
    for kind in KINDS:
        for element in ELEMENTS:
            cases = [c for c in data["cases"] if (c["kind"], c["type"]) == (kind, element) and OURS in timed(c)]
            if not cases:
                continue
            ratios = [r for r in map(ratio_to_best, cases) if r is not None]
            shares = [s for s in map(share_of_floor, cases) if s is not None]
            rows.append([kind, element, str(len(cases)), str(sum(r > 1 for r in ratios)), ranged(ratios, times),
                         ranged(shares, percent)])
    if not rows:
        return ""
    header = ["work", "type", "cases", "fastest in", "x best peer: median, range", "of the larger floor"]
    return f"## In short\n\n{markdown(header, rows)}\n"


def kind_table(data, kind):
    """One row for each case of a kind, one column for each peer that was timed in any of them; "" without cases."""
    cases = [c for c in data["cases"] if c["kind"] == kind and timed(c)]
    if not cases:
        return ""
    names = [n for n in NAMES if any(n in timed(c) for c in cases)]
    decode = kind == "decode"
    packed = any(c["type"] in PACKED for c in cases)
    header = ["type", "keys" if decode else "tokens", "d", "threads"] + [NAMES[n] for n in names] + ["x best peer"]
    header += ["x own bf16"] if packed else []
    header += ["GB/s of K, V", "floor ms"] if decode else ["floor GFLOP/s"]
    header += ["of flops", "of bytes"] + (["density"] if kind == "sparse" else [])
    rows = []
    for c in cases:
        peers, floor = timed(c), c.get("floor")
        row = [c["type"], str(c["keys"]), str(c["head_dim"]), str(c["threads"])]
        row += [cell(c, peers.get(n)) for n in names] + [times(ratio_to_best(c))]
        row += [times(ratio_to_own_bf16(data, c))] if packed else []
        if decode:
            ours = peers.get(OURS)
            row.append(digits(c["kv_bytes"] / median(ours["ms"]) * 1e-6) if ours else "-")
            row.append(f"{digits(floor['ms'])} ({'bytes' if floor['bytes_ms'] >= floor['flops_ms'] else 'flops'})"
                       if floor else "-")
        else:
            row.append(digits(c["flops"] / floor["ms"] * 1e-6) if floor else "-")
        row += [percent(share_of_floor(c, "flops_ms")), percent(share_of_floor(c, "bytes_ms"))]
        if kind == "sparse":
            row.append(f"{c['density']:.3f}")
        rows.append(row)
    what = "Milliseconds" if decode else "GFLOP/s on visible edges"
    return f"## {KINDS[kind]}\n\n{what}: median, and half of slowest less fastest.\n\n{markdown(header, rows)}\n"


def detail_table(data):
    rows = []
    for c in data["cases"]:
        for p in c["peers"]:
            if p.get("ms"):
                rows.append([c["name"], NAMES[p["name"]], digits(median(p["ms"])),
                             f"{digits(min(p['ms']))} .. {digits(max(p['ms']))}", str(len(p["ms"])), str(p["calls"]),
                             f"{p['error']:.1e}", p["types"]])
    header = ["case", "peer", "ms", "fastest .. slowest", "rounds", "calls a round", "relative error", "types"]
    return f"## Every measurement\n\n{markdown(header, rows)}\n"


def limits_table(limits):
    rows = [[f"{x['name']} {x['pattern']}".strip(), str(x["threads"]),
             digits(x["median"]) if x["present"] else "absent", digits(x["best"]) if x["present"] else "-",
             percent(x["spread"]) if x["present"] else "-", x["unit"]] for x in limits["limits"]]
    return f"## Limits\n\n{markdown(['limit', 'threads', 'median', 'best', 'spread', 'unit'], rows)}\n"


def notes(data):
    lines = [f"- {NAMES[n]}: {p['version']}" if "version" in p else f"- {NAMES[n]}: left out, {p['skipped']}"
             for n, p in data["peers"].items()]
    wrong = [f"- {c['name']}, {NAMES[p['name']]}: {p['failed']}" for c in data["cases"] for p in c["peers"]
             if "failed" in p]
    return "\n".join(lines) + "\n" + ("\nNot timed:\n\n" + "\n".join(wrong) + "\n" if wrong else "")


def document(data):
    """The whole page."""
    machine = data["machine"]
    rounds = sorted({len(timed(c)[OURS]["ms"]) for c in data["cases"] if OURS in timed(c)})
    head = f"""# Peers

{machine['cpu']}, {machine['cores']} cores, {data['limits']['features'] or 'no vector units known here'}. {machine['system']}.
{data['date']}, `{' '.join(data['command'])}`.

Every peer is a process of its own; their repetitions are taken in turns, {' or '.join(map(str, rounds))} rounds, fewer of slow ones. Inputs are N(0, 1), rounded to the
type of the case, the same for all; of 8bit and 4bit they are f32, and each peer packs keys and values in its own way before it is timed
("Every measurement" says how). 8 query heads, 2 KV heads. FLOPs are 4 * head_dim for each visible (query, key) pair of each head.
Two floors: FLOPs over the best measured rate of the type's fastest unit (f16: float multiply-add; 8bit, 4bit: products of bytes), and bytes of q, k, v (8bit, 4bit:
rows as ours are packed) and out over the best measured read bandwidth of the cache that holds half of them, or of DRAM; both the best of
this run, before and after the cases. The floor is the larger; "of flops" and "of bytes" are each over our time. x best peer: time of the fastest
peer over ours. x own bf16: our time in bf16 on the same shape over ours.

"""
    tables = "".join(kind_table(data, kind) for kind in KINDS)
    return head + notes(data) + "\n" + summary_table(data) + tables + detail_table(data) + limits_table(data["limits"])
