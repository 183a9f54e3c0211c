# SPDX-License-Identifier: MIT
"""The roofline of a run of compare.py: rate over arithmetic intensity, under the ceilings machine_limits measured."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import report

INK, FAINT = "#222222", "#8a8a8a"
# Okabe and Ito's palette.
COLORS = {"butterfly": "#d55e00", "eigen": "#56b4e9", "openblas": "#0072b2", "onednn": "#009e73", "ggml": "#e69f00",
          "torch_sdpa": "#cc79a7", "torch_folded": "#7b4173", "torch_flex": "#444444"}
MARKERS = {"prefill": "o", "sparse": "s", "decode": "^"}
LEVELS = {"l2": "L2", "l3": "L3", "dram": "memory"}


def name_of(unit):
    """What a reader calls the unit of a limit."""
    family, element = unit["name"].split("_")[:2]
    return {"fma": "f32 multiply-add", "dot": f"{element} dot", "amx": "AMX tiles"}[family]


def intensity(case):
    """FLOPs for each byte of q, k, v and out, all read or written once."""
    return case["flops"] / case["bytes"]


def draw_ceilings(axes, limits, element, threads, span):
    """Slopes of the levels of memory and the plateau of the type's best unit, each with its name."""
    unit = report.best_limit(limits, "compute", report.UNITS[element], threads)
    peak = unit["best"]
    for level, line in (("l2", (0, (1, 1.5))), ("l3", (0, (4, 2))), ("dram", "-")):
        rate = report.best_limit(limits, "read", (level,), threads)["best"]
        xs = (span[0], peak / rate, span[1])
        axes.plot(xs, (xs[0] * rate, peak, peak), color=FAINT, linewidth=1.1, linestyle=line, zorder=1,
                  label=f"{LEVELS[level]}, {report.digits(rate)} GB/s")
    axes.legend(loc="lower right", frameon=False, fontsize=8, labelcolor=FAINT)
    axes.annotate(f"{name_of(unit)}, {report.digits(peak)} GFLOP/s", xy=(span[1], peak), color=FAINT, fontsize=8,
                  xytext=(-3, 4), textcoords="offset points", ha="right")


def draw_panel(axes, data, element, threads):
    cases = [c for c in data["cases"] if c["type"] == element and c["threads"] == threads and report.timed(c)]
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = [intensity(c) for c in cases]
    rates = [c["flops"] / report.median(p["ms"]) * 1e-6 for c in cases for p in report.timed(c).values()]
    peak = report.best_limit(data["limits"], "compute", report.UNITS[element], threads)["best"]
    span = (min(values + [1.0]) / 2, max(values) * 3)
    bottom = min(rates) / 1.6
    axes.set_xlim(span)
    axes.set_ylim(bottom, peak * 1.6)
    draw_ceilings(axes, data["limits"], element, threads, span)
    for case in cases:
        for name, peer in report.timed(case).items():
            ours = name == report.OURS
            axes.plot(intensity(case), case["flops"] / report.median(peer["ms"]) * 1e-6, linestyle="none",
                      marker=MARKERS[case["kind"]], color=COLORS[name], markersize=9 if ours else 6,
                      alpha=1 if ours else 0.75, markeredgecolor="white", markeredgewidth=0.8, zorder=4 if ours else 3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if axis is axes.yaxis else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: report.digits(value)))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{element}, {threads} thread{'s' if threads > 1 else ''}", loc="left", fontsize=12, fontweight="bold",
                   color=INK)
    axes.set_xlabel("FLOPs for each byte of q, k, v, out", color=FAINT, fontsize=9)
    axes.set_ylabel("GFLOP/s on visible edges", color=FAINT, fontsize=9)
    axes.grid(color="#ececec", linewidth=0.7, zorder=0)
    axes.tick_params(length=0, colors=FAINT, labelsize=8.5, which="both")
    for side in axes.spines.values():
        side.set_color("#d5d5d5")


def legend(figure, data):
    seen = [n for n in report.NAMES if any(n in report.timed(c) for c in data["cases"])]
    kinds = [k for k in report.KINDS if any(c["kind"] == k for c in data["cases"])]
    handle = lambda **style: plt.Line2D([], [], linestyle="none", markersize=8, **style)
    handles = [handle(marker="o", color=COLORS[n]) for n in seen] + [handle(marker=MARKERS[k], color=FAINT) for k in kinds]
    figure.legend(handles, [report.NAMES[n] for n in seen] + kinds, loc="lower center", ncol=4 if len(figure.axes) > 1 else 2, frameon=False, fontsize=9)


def draw(data, out):
    """Writes <out>.svg and <out>.png; a panel for each type and count of threads that was measured. Returns the paths."""
    timed = {(c["type"], c["threads"]) for c in data["cases"] if report.timed(c)}
    if not timed:
        return []
    counts = sorted({t for _, t in timed})
    elements = [e for e in report.ELEMENTS if any((e, t) in timed for t in counts)]
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "roofline"})
    figure, grid = plt.subplots(len(counts), len(elements), squeeze=False,
                                figsize=(5.2 * len(elements), 4.3 * len(counts) + 1.4))
    room = 1.4 / (4.3 * len(counts) + 1.4)
    figure.subplots_adjust(left=0.07, right=0.98, top=1 - 0.45 * room, bottom=0.35 * room + 0.1, hspace=0.32, wspace=0.22)
    for row, threads in zip(grid, counts):
        for axes, element in zip(row, elements):
            if (element, threads) in timed:
                draw_panel(axes, data, element, threads)
            else:
                axes.set_axis_off()
    figure.text(0.01, 0.985, f"{data['machine']['cpu']}, {data['date'][:10]}", fontsize=11, color=FAINT, va="top")
    legend(figure, data)
    paths = []
    for kind in ("svg", "png"):
        paths.append(f"{out}.{kind}")
        figure.savefig(paths[-1], dpi=150, facecolor="white", bbox_inches="tight",
                       metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    return paths
