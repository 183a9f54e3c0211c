# SPDX-License-Identifier: MIT
"""Tests of bench/peers: what a case is and costs, ratios, floors, tables, and the turns that peers take."""

import contextlib
import io
import pathlib
import re
import sys
import tempfile
import unittest
import unittest.mock

import numpy

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench" / "peers"))
import cases
import compare
import report


def case(**fields):
    return cases.Case(**{"kind": "prefill", "type": "f32", "queries": 300, "keys": 300, "head_dim": 8, "threads": 1,
                         "heads": 4, "kv_heads": 2, "block": 16, **fields})


def limit(kind, name, best, threads=2, present=True, pattern=""):
    numbers = {"median": best * 0.9, "best": best, "spread": 0.1} if present else {}
    return {"kind": kind, "name": name, "pattern": pattern, "threads": threads, "unit": "GFLOP/s", "present": present,
            **numbers}


LIMITS = {
    "features": "avx2 avx512",
    "caches": {"l1": 32 << 10, "l2": 1 << 20, "l3": 32 << 20},
    "machine": {},
    "limits": [
        limit("compute", "fma_f32_avx2", 100), limit("compute", "fma_f32_avx512", 200), limit("compute", "fma_f32_avx512", 900, threads=1),
        limit("compute", "dot_bf16_avx512", 400), limit("compute", "dot_int8_avx512", 800), limit("compute", "amx_bf16_registers", 0, present=False),
        limit("read", "l2", 200, pattern="one_stream"), limit("read", "l3", 100, pattern="one_stream"),
        limit("read", "dram", 20, pattern="one_stream"), limit("read", "dram", 25, pattern="four_streams"),
    ],
}


def peer(name, *ms):
    return {"name": name, "types": "f32", "error": 1e-7, "calls": 1, "ms": list(ms)}


def result(kind="prefill", peers=(), **fields):
    out = {"name": f"{kind} f32", "kind": kind, "type": "f32", "keys": 4096, "head_dim": 128, "threads": 2, "flops": 4e9,
           "bytes": 8 << 20, "kv_bytes": 4 << 20, "peers": list(peers), **fields}
    out["floor"] = report.floor_of(LIMITS, out["type"], out["flops"], out["bytes"], out["threads"])
    return out


class Environment(unittest.TestCase):
    def test_openblas_is_given_the_widest_kernels_of_the_cpu(self):
        if "OPENBLAS_CORETYPE" in compare.os.environ:
            self.skipTest("the user has chosen")
        self.assertEqual(compare.widest_kernels("0.3.21 Haswell", LIMITS["features"]), {"OPENBLAS_CORETYPE": "SkylakeX"})
        self.assertEqual(compare.widest_kernels("0.3.29 SapphireRapids", LIMITS["features"]), {})
        self.assertEqual(compare.widest_kernels("0.3.21 Haswell", "avx2"), {})


class Cases(unittest.TestCase):
    def test_edges_are_those_that_are_seen(self):
        for kind, queries in (("prefill", 300), ("sparse", 300), ("sparse", 10), ("decode", 1)):
            c = case(kind=kind, queries=queries, keys=1 if kind == "decode" else queries)
            self.assertEqual(c.edges(), sum(int(c.sees(i).sum()) for i in range(queries)), c.name)

    def test_sparse_rows(self):
        c = case(kind="sparse")
        self.assertEqual(c.blocks_of(0), [0])
        self.assertEqual(c.blocks_of(8), [0, 7, 8])
        self.assertEqual(c.blocks_of(12), [0, 4, 11, 12])
        self.assertFalse(c.sees(40)[41])
        self.assertFalse(c.sees(16 * 12)[16 * 5])

    def test_cost(self):
        c = case(kind="decode", type="bf16", queries=1, keys=1000, head_dim=64)
        self.assertEqual(c.flops(), 4 * 1000 * 64 * 4)
        self.assertEqual(c.kv_bytes(), 2 * 2 * 1000 * 64 * 2)
        self.assertEqual(c.bytes(), c.kv_bytes() + 2 * 4 * 64 * 2)

    def test_packed_keys_and_values(self):
        self.assertEqual(set(report.PACKED), set(cases.PACKED_BITS))
        for element, row in (("8bit", 66), ("4bit", 34)):
            c = case(kind="decode", type=element, queries=1, keys=1000, head_dim=64)
            self.assertEqual(c.kv_bytes(), 2 * 2 * 1000 * row)
            self.assertEqual(c.bytes(), c.kv_bytes() + 2 * 4 * 64 * 4)
            self.assertEqual(c.request("")["type"], element)
            plain = case(kind="decode", type="f32", queries=1, keys=1000, head_dim=64)
            inputs = cases.make_inputs(c)
            for x, y in zip(inputs, cases.make_inputs(plain)):
                self.assertTrue((x == y).all())
            rows = cases.rows_to_check(c)
            want = cases.reference(c, inputs, rows)
            self.assertTrue((want == cases.reference(plain, inputs, rows)).all())
            fewer = case(kind="decode", type=element, queries=1, keys=750, head_dim=64)
            for wrong in (want[::-1], cases.reference(fewer, inputs, rows)):  # heads, a quarter of the keys left out
                self.assertGreater(cases.relative_error(wrong, want), cases.tolerance("ggml", element))

    def test_rounding(self):
        bits = cases.round_to(numpy.array([1.0, 1.00390625, 1.01171875, -3.0], dtype=numpy.float32), "bf16")
        self.assertEqual([hex(b) for b in bits], ["0x3f80", "0x3f80", "0x3f82", "0xc040"])  # ties go to even
        self.assertEqual(cases.to_double(bits, "bf16").tolist(), [1.0, 1.0, 1.015625, -3.0])

    def test_inputs_are_drawn_alike_and_not_zero(self):
        a, b = cases.make_inputs(case()), cases.make_inputs(case())
        for x, y in zip(a, b):
            self.assertTrue((x == y).all())
            self.assertAlmostEqual(float(x.std()), 1, delta=0.1)

    def test_reference_is_attention(self):
        c = case(kind="sparse", type="f16")
        q, k, v = inputs = cases.make_inputs(c)
        rows = cases.rows_to_check(c)
        self.assertIn((c.heads - 1, c.queries - 1), rows)
        got = cases.reference(c, inputs, rows)
        for (head, i), row in zip(rows, got):
            scores = k[head // 2].astype(float) @ q[head, i].astype(float) / 8**0.5
            weights = numpy.where(c.sees(i), numpy.exp(scores), 0)
            self.assertLess(cases.relative_error(row, weights @ v[head // 2].astype(float) / weights.sum()), 1e-12)
        self.assertGreater(cases.relative_error(got[::-1], got), cases.tolerance("ggml", "f16"))
        self.assertLess(cases.tolerance("butterfly", "f16"), cases.tolerance("ggml", "f16"))

    def test_names(self):
        every = cases.all_cases([1, 2])
        self.assertEqual(len({c.name for c in every}), len(every))
        self.assertEqual({c.kind for c in every if c.default}, set(report.KINDS))
        self.assertTrue(any(c.default for c in cases.all_cases([1])))
        for shown in (every, [c for c in every if c.default]):
            packed = [c for c in shown if re.search("decode .bit", c.name)]
            self.assertEqual({(c.type, c.keys) for c in packed},
                             {(t, n) for t in cases.PACKED_BITS for n in (4096, 32768, 131072)})
            beside = {(c.keys, c.head_dim, c.threads) for c in shown if (c.kind, c.type) == ("decode", "bf16")}
            self.assertTrue(all((c.keys, c.head_dim, c.threads) in beside for c in packed))


class Report(unittest.TestCase):
    def test_numbers(self):
        self.assertEqual(report.median([3, 1, 2]), 2)
        self.assertEqual(report.spread([1, 2, 4]), 1.5)
        self.assertEqual([report.digits(x) for x in (12345.6, 123, 1.234, 0.01234)], ["12 346", "123", "1.23", "0.0123"])

    def test_limits(self):
        self.assertEqual(report.best_limit(LIMITS, "compute", report.UNITS["bf16"], 2)["name"], "dot_bf16_avx512")
        self.assertEqual(report.best_limit(LIMITS, "compute", report.UNITS["4bit"], 2)["name"], "dot_int8_avx512")
        self.assertEqual(report.best_limit(LIMITS, "read", ("dram",), 2)["pattern"], "four_streams")
        self.assertIsNone(report.best_limit(LIMITS, "read", ("dram",), 7))
        sizes = (120 << 10, 4 << 20, 5 << 20, 65 << 20)
        self.assertEqual([report.level_of(LIMITS, b, 2) for b in sizes], ["l1", "l2", "l3", "dram"])

    def test_floor_is_the_larger(self):
        floor = report.floor_of(LIMITS, "f32", 4e9, 1 << 20, 2)
        self.assertEqual((floor["unit"], floor["ms"]), ("fma_f32_avx512", 20))
        floor = report.floor_of(LIMITS, "f32", 1e6, 100e6, 2)
        self.assertEqual((floor["level"], floor["ms"]), ("dram", 4))
        self.assertIsNone(report.floor_of(LIMITS, "f32", 1, 1, 7))

    def test_ratios(self):
        c = result(peers=[peer("butterfly", 24, 25, 26), peer("eigen", 60, 50, 40), peer("ggml", 90),
                          {"name": "onednn", "failed": "relative error 1"}, {"name": "torch_flex", "refused": "no"}])
        self.assertEqual(report.best_peer(c), ("eigen", 50))
        self.assertEqual(report.ratio_to_best(c), 2)
        self.assertEqual(report.share_of_floor(c), 0.8)
        self.assertEqual(report.share_of_floor(c, "flops_ms"), 0.8)
        self.assertLess(report.share_of_floor(c, "bytes_ms"), 0.01)
        self.assertIsNone(report.ratio_to_best(result(peers=[peer("butterfly", 1)])))
        self.assertIsNone(report.ratio_to_best(result(peers=[peer("ggml", 1)])))

    def test_beside_our_own_bf16(self):
        bf16 = result("decode", [peer("butterfly", 30, 31, 32)], type="bf16")
        packed = result("decode", [peer("butterfly", 10), peer("ggml", 40)], type="4bit")
        others = [result("decode", [peer("butterfly", 1)], type=t, **other)
                  for t, other in (("f32", {}), ("bf16", {"keys": 1}), ("bf16", {"threads": 1}), ("bf16", {"head_dim": 64}))]
        self.assertEqual(report.ratio_to_own_bf16({"cases": others + [bf16, packed]}, packed), 3.1)
        self.assertIsNone(report.ratio_to_own_bf16({"cases": others + [packed]}, packed))
        self.assertIsNone(report.ratio_to_own_bf16({"cases": [bf16, packed]}, bf16))
        self.assertIsNone(report.ratio_to_own_bf16({"cases": [{**bf16, "peers": []}, packed]}, packed))
        self.assertIsNone(report.ratio_to_own_bf16({"cases": [bf16, packed]}, {**packed, "peers": []}))
        table = report.kind_table({"cases": [bf16, packed]}, "decode")
        self.assertIn("| x best peer | x own bf16 |", table)
        self.assertIn("| 10 (one call) | 40 (one call) | 4.00 | 3.10 |", table)
        self.assertIn("| 31 ±3 % | - | - | - |", table)
        self.assertNotIn("own bf16", report.kind_table({"cases": [bf16]}, "decode"))

    def test_one_call_has_no_spread(self):
        c = result(peers=[])
        self.assertEqual(report.cell(c, peer("ggml", 20, 25, 30)), "160 ±20 %")
        self.assertEqual(report.cell(c, peer("ggml", 25)), "160 (one call)")

    def test_summary(self):
        cases = [result(peers=[peer("butterfly", 50), peer("eigen", ms)]) for ms in (40, 100, 200)]
        table = report.summary_table({"cases": cases + [result(peers=[peer("eigen", 1)])]})
        self.assertIn("| prefill | f32 | 3 | 2 | 2.00, 0.80 to 4.00 | 40 %, 40 % to 40 % |", table)
        self.assertEqual(report.summary_table({"cases": []}), "")

    def test_the_better_limits_count(self):
        quiet, busy = limit("read", "dram", 30, pattern="one_stream"), limit("read", "dram", 10, pattern="one_stream")
        absent = limit("compute", "amx", 0, present=False)
        for pair in ((quiet, busy), (busy, quiet)):
            joined = compare.join_limits(*({"caches": LIMITS["caches"], "limits": [x, absent]} for x in pair))
            self.assertEqual([x.get("best") for x in joined["limits"]], [30, None])
            self.assertEqual(joined["caches"], LIMITS["caches"])

    def test_document(self):
        data = {"machine": {"cpu": "a CPU", "cores": 2, "system": "a system"}, "date": "2026-01-01", "command": ["run"],
                "settings": {"rounds": 3}, "limits": LIMITS,
                "peers": {"butterfly": {"version": "1"}, "ggml": {"skipped": "not built here"}},
                "cases": [result(peers=[peer("butterfly", 25), peer("eigen", 50)]),
                          result("sparse", [peer("butterfly", 10), {"name": "ggml", "failed": "its process ended"}],
                                 flops=1e9, density=0.2),
                          result("decode", [peer("butterfly", 2, 3, 4)], flops=1e6, bytes=80e6, kv_bytes=80e6)]}
        text = report.document(data)
        self.assertIn("| f32 | 4096 | 128 | 2 | 160 (one call) | 80 (one call) | 2.00 | 200 | 80 % | 0.3 % |", text)
        self.assertIn("| f32 | 4096 | 128 | 2 | 100 (one call) | - | 200 | 50 % | 0.8 % | 0.200 |", text)
        self.assertIn("| f32 | 4096 | 128 | 2 | 3 ±33 % | - | 26.7 | 3.2 (bytes) | 0.2 % | 107 % |", text)
        self.assertIn("ggml: left out, not built here", text)
        self.assertIn("- sparse f32, ggml: its process ended", text)
        self.assertIn("| amx_bf16_registers | 2 | absent |", text)
        for table in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M):
            self.assertEqual(len({line.count("|") for line in table.splitlines()}), 1, table)


def run_of(cases=(), threads=(1, 2), cpu="a CPU", limits=LIMITS, **peers):
    return {"command": ["bench/peers/run", "--full"], "machine": {"cpu": cpu, "cores": 2}, "limits": limits,
            "settings": {"rounds": 3, "threads": list(threads)}, "cases": list(cases),
            "peers": {"butterfly": {"version": "1"}, "ggml": {"skipped": "not built here"}, **peers}}


class GoingOn(unittest.TestCase):
    def test_unsteady_is_ours_or_a_peer_that_may_be_the_fastest(self):
        steady, unsteady, slow = peer("butterfly", 10, 11, 10), peer("eigen", 20, 26, 20), peer("ggml", 50, 500, 50)
        self.assertAlmostEqual(compare.unsteadiness(result(peers=[steady, unsteady, slow])), 0.15)
        self.assertAlmostEqual(compare.unsteadiness(result(peers=[peer("butterfly", 10, 20, 10), unsteady])), 0.5)
        self.assertAlmostEqual(compare.unsteadiness(result(peers=[steady, unsteady, peer("ggml", 50, 52, 18)])), 0.34)
        self.assertAlmostEqual(compare.unsteadiness(result(peers=[steady])), 0.05)
        failed = {"name": "onednn", "failed": "its process ended"}
        for unknown in ([], [peer("butterfly", 10), unsteady], [steady, peer("eigen", 20)], [unsteady],
                        [steady, unsteady, failed], [{**failed, "name": "butterfly"}, unsteady]):
            self.assertEqual(compare.unsteadiness(result(peers=unknown)), float("inf"))

    def test_the_later_measurement_stays_and_not_the_winner(self):
        won = result(peers=[peer("butterfly", 10, 14, 10), peer("eigen", 40, 40, 40)])
        lost = result(peers=[peer("butterfly", 50, 51, 50), peer("eigen", 40, 40, 40)])
        other, unknown = {**lost, "name": "decode f32"}, {**lost, "name": "of another version"}
        order = ["prefill f32", "decode f32"]
        for first, second in ((won, lost), (lost, won)):
            self.assertEqual(compare.enter([unknown, other, first], second, order), [second, other, unknown])
        self.assertEqual(compare.enter([], won, order), [won])
        gone = {"name": "ggml", "failed": "its process ended"}
        without = result(peers=[peer("butterfly", 10, 10, 10), gone])
        self.assertEqual(compare.enter([won], without, order), [won])
        self.assertEqual(compare.enter([without], won, order), [won])
        wrong = result(peers=[{**gone, "name": "butterfly"}, peer("eigen", 40, 40, 40)])
        self.assertEqual(compare.enter([won], wrong, order), [wrong])

    def test_cases_and_limits_are_taken_over(self):
        faster = {**LIMITS, "limits": [{**x, "best": 2 * x["best"]} if x["present"] else x for x in LIMITS["limits"]]}
        got = compare.go_on(run_of(), run_of([result()], limits=faster))
        self.assertEqual(got["cases"], [result()])
        self.assertEqual(got["command"], ["bench/peers/run", "--full", "&&", "bench/peers/run", "--full"])
        self.assertEqual(got["limits"]["limits"], faster["limits"])

    def test_other_circumstances_are_refused(self):
        others = (run_of(cpu="another"), run_of(threads=(2,)), run_of(ggml={"version": "2"}), run_of(eigen={"version": "3"}))
        for other in others:
            for pair in ((run_of(), other), (other, run_of())):
                with self.assertRaisesRegex(compare.PeerError, "another --out"):
                    compare.go_on(*pair)

    def test_cases_that_are_missing_or_unsteady_are_taken(self):
        known = cases.all_cases([2])[:4]
        steady, unsteady = [peer("butterfly", 10, 10, 10), peer("eigen", 20, 20, 20)], [peer("butterfly", 10, 30, 10)]
        earlier = run_of([{**result(peers=p), "name": c.name} for c, p in zip(known, (steady, unsteady, steady))], threads=[2])
        fresh, taken = run_of(threads=[2]), []

        def run_case(case, *_):
            taken.append(case.name)
            return {**result(peers=[peer("butterfly", 5, 5, 5)]), "name": case.name}

        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()), \
                unittest.mock.patch.multiple(compare, machine_limits=lambda *_: {**LIMITS, "machine": fresh["machine"]},
                                             start_workers=lambda *_: ({}, fresh["peers"]), run_case=run_case,
                                             save=lambda *_: None):
            arguments = compare.parse_arguments(["--full", "--threads", "2", "--keep", "15"])
            data = compare.measure(arguments, known, known, pathlib.Path(folder), earlier)
        self.assertEqual(taken, [known[1].name, known[3].name])
        self.assertEqual([c["name"] for c in data["cases"]], [c.name for c in known])
        self.assertEqual([len(c["peers"]) for c in data["cases"]], [2, 1, 2, 1])

    def test_what_is_no_run_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "peers.json"
            for text in (None, "{", "[]", "3", '{"command": []}', '{"machine": {}, "settings": 3, "peers": []}'):
                if text is not None:
                    path.write_text(text, encoding="utf-8")
                with self.assertRaisesRegex(compare.PeerError, "no earlier run: .*peers.json"):
                    compare.read_run(path)
            path.write_text(compare.json.dumps(run_of([result()])), encoding="utf-8")
            self.assertEqual(compare.read_run(path)["cases"], [result()])


class Arguments(unittest.TestCase):
    def test_command(self):
        arguments = compare.parse_arguments(["--only", "decode .*2T", "--threads", "2,1,2", "--peers", "ggml,butterfly",
                                             "--keep", "15"])
        self.assertEqual(arguments.threads, [1, 2])
        self.assertEqual(" ".join(compare.command_of(arguments)), "bench/peers/run --only 'decode .*2T' --keep 15 --peers "
                         "ggml,butterfly "
                         "--rounds 7 --budget 6 --threads 1,2")

    def test_bad_ones_are_refused(self):
        for bad in (["--only", "["], ["--threads", "0"], ["--threads", ""], ["--peers", "abacus"], ["--rounds", "0"],
                    ["--budget", "nan"], ["--keep", "0"], ["--keep", "abc"]):
            with self.assertRaises(SystemExit, msg=bad), contextlib.redirect_stderr(io.StringIO()):
                compare.parse_arguments(bad)


class Scripted:
    """A worker whose calls take what a list says."""

    def __init__(self, name, order, ms=5.0, fails_at=None):
        self.name, self.order, self.ms, self.fails_at, self.asked = name, order, ms, fails_at, 0

    def ask(self, request):
        self.asked += 1
        if self.asked == self.fails_at:
            raise compare.PeerError("its process ended")
        self.order.append((self.name, request["calls"]))
        return {"ms": self.ms}


class Turns(unittest.TestCase):
    def measure(self, rounds=3, **workers):
        entries = [{"name": n, "types": "f32", "error": 0, "first_ms": w.ms} for n, w in workers.items()]
        compare.time_in_turns(workers, entries, rounds, 6)
        return {e["name"]: e for e in entries}

    def test_rounds_are_interleaved(self):
        order = []
        got = self.measure(a=Scripted("a", order), b=Scripted("b", order))
        self.assertEqual(order, [("a", 1), ("b", 1)] + [("a", 4), ("b", 4), ("b", 4), ("a", 4), ("a", 4), ("b", 4)])
        self.assertEqual(got["a"], {"name": "a", "types": "f32", "error": 0, "calls": 4, "ms": [5.0, 5.0, 5.0]})

    def test_slow_peers_have_fewer_rounds(self):
        order = []
        got = self.measure(9, a=Scripted("a", order), slow=Scripted("slow", order, ms=1500.0),
                           slower=Scripted("slower", order, ms=19500.0), stuck=Scripted("stuck", order, ms=20500.0))
        self.assertEqual({n: len(e["ms"]) for n, e in got.items()}, {"a": 9, "slow": 4, "slower": 3, "stuck": 1})
        self.assertNotIn("stuck", {name for name, _ in order})

    def test_fewer_rounds_are_spread(self):
        self.assertEqual([t for t in range(9) if compare.takes_turn(t, 3, 9)], [2, 5, 8])
        self.assertTrue(all(compare.takes_turn(t, 9, 9) for t in range(9)))
        self.assertFalse(any(compare.takes_turn(t, 0, 9) for t in range(9)))

    def test_a_failure_is_of_one_peer(self):
        order = []
        got = self.measure(a=Scripted("a", order), b=Scripted("b", order, fails_at=3))
        self.assertEqual(got["b"], {"name": "b", "types": "f32", "error": 0, "failed": "its process ended"})
        self.assertEqual(len(got["a"]["ms"]), 3)

    def test_a_process_is_spoken_to_line_by_line(self):
        program = ('import sys, json\nprint("a library says hello")\nprint(json.dumps({"version": "7"}), flush=True)\n'
                   'for line in sys.stdin:\n'
                   '    cmd = json.loads(line)["cmd"]\n'
                   '    if cmd == "die": sys.exit(3)\n'
                   '    print(json.dumps({"error": "no"} if cmd == "bad" else {"ms": 1}), flush=True)\n')
        with tempfile.TemporaryFile() as log:
            worker = compare.Worker("x", [sys.executable, "-c", program], {}, log)
            try:
                self.assertEqual(worker.version, "7")
                self.assertEqual(worker.ask({"cmd": "go"}), {"ms": 1})
                for cmd in ("bad", "die"):
                    with self.assertRaises(compare.PeerError):
                        worker.ask({"cmd": cmd})
                self.assertEqual(worker.ask({"cmd": "go"}), {"ms": 1})  # started again
            finally:
                worker.stop()


if __name__ == "__main__":
    unittest.main()
