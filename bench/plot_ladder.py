#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws what context_ladder --json FILE wrote: time, peak memory, retained KV and decode rate over context.

    /usr/bin/python3 bench/plot_ladder.py ladder.json --out figures/ladder      figures/ladder.png and figures/ladder.svg
"""

import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

import figures

# Okabe and Ito's palette: told apart by colour-blind readers, and by line style in grey.
STYLES = {
    "dense": ("#444444", "o", "-"),
    "window": ("#0072b2", "s", (0, (4, 2))),
    "block_sparse": ("#e69f00", "^", (0, (1, 1.2))),
    "compressed": ("#d55e00", "D", "-"),
}
NAMES = {"block_sparse": "block-sparse"}
INK, FAINT = "#222222", "#8a8a8a"


def tokens_text(n):
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if n >= size and n % size == 0:
            return f"{n // size}{unit}"
    return str(n)


def digits(x):
    """Three significant digits without an exponent."""
    if x >= 100:
        return f"{x:,.0f}".replace(",", " ")
    return f"{x:.3g}"


def seconds_text(x):
    if x < 1e-3:
        return f"{digits(x * 1e6)} µs"
    if x < 1:
        return f"{digits(x * 1e3)} ms"
    if x < 60:
        return f"{digits(x)} s"
    if x < 3600:
        return f"{digits(x / 60)} min"
    return f"{digits(x / 3600)} h"


def bytes_text(x):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if x >= size:
            return f"{digits(x / size)} {unit}"
    return f"{digits(x)} B"


def rate_text(x):
    return f"{digits(x)}/s"


PANELS = [
    ("total_seconds", "Time of attention", "prefill and {decode} decoded tokens, all layers", seconds_text, "total"),
    ("peak_bytes", "Peak memory", "resident in a process of its own", bytes_text, "peak"),
    ("retained_bytes", "Retained KV", "needed to go on after the prefill", bytes_text, "retained"),
    ("decode_tokens_per_second", "Decode rate", "tokens per second, attention of all layers", rate_text, "decode"),
]


CLOCK = [60, 600, 3600, 36000, 360000]  # where a time axis has its lines above ten seconds


def ticks(low, high, text):
    """Round values between `low` and `high`: powers of ten, with 2 and 5 where the range is short, or clock times."""
    powers = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    factors = (1, 2, 5) if math.log10(high / low) < 1.7 else (1,)
    values = [p * f for p in powers for f in factors]
    if text is seconds_text and high > 60:
        values = [v for v in values if v < 60] + [c * f for c in CLOCK for f in factors]
    return sorted({v for v in values if low <= v <= high})


def measured_rungs(data, path):
    rungs = [r for r in data["rungs"] if "systems" in r]
    if not rungs:
        figures.fail(f"{path} has no rung that was measured")
    return rungs


def series(rungs, system, key):
    points = [(r["context"], r["systems"][system].get(key)) for r in rungs if system in r["systems"]]
    return [(x, y) for x, y in points if y]


def spread(labels, gap, bottom, top):
    """Moves label heights (log units) apart by at least `gap`, keeping their order, near their mean, inside the panel."""
    labels.sort(key=lambda item: (round(item[0], 2), -list(STYLES).index(item[1][0])))
    heights = [h for h, _ in labels]
    for _ in range(200):
        moved = False
        for i in range(len(heights) - 1):
            lack = gap - (heights[i + 1] - heights[i])
            if lack > 1e-6:
                heights[i] -= lack / 2
                heights[i + 1] += lack / 2
                moved = True
        if not moved:
            break
    shift = max(0.0, bottom - heights[0]) - max(0.0, heights[-1] - top)
    return [h + shift for h in heights]


def draw_panel(axes, data, rungs, panel):
    key, title, subtitle, text, ratio = panel
    settings = data["settings"]
    contexts = [r["context"] for r in rungs]
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")

    labels = []
    for system in settings["systems"]:
        points = series(rungs, system, key)
        if not points:
            continue
        color, marker, line = STYLES[system]
        xs, ys = zip(*points)
        axes.plot(xs, ys, color=color, marker=marker, linestyle=line, linewidth=2.2, markersize=6.5,
                  markeredgecolor="white", markeredgewidth=1.0, zorder=3, clip_on=False)
        last = rungs[-1]["systems"].get(system, {})
        x = (last.get("x") or {}).get(ratio)
        times = f"  {digits(x)}×" if x and system != "dense" else ""
        labels.append((math.log10(ys[-1]), (system, xs[-1], ys[-1], text(ys[-1]) + times, color)))

    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK, pad=22)
    axes.text(0, 1.035, subtitle.format(decode=settings["decode"]), transform=axes.transAxes, fontsize=9.5, color=FAINT)
    if not labels:
        axes.set_axis_off()
        axes.text(0, 0.5, "not measured on this system", transform=axes.transAxes, fontsize=9.5, color=FAINT)
        return
    low, high = axes.get_ylim()
    span = math.log10(high) - math.log10(low)
    low, high = 10 ** (math.log10(low) - 0.03 * span), 10 ** (math.log10(high) + 0.03 * span)
    axes.set_ylim(low, high)
    span = math.log10(high) - math.log10(low)
    heights = spread(labels, 0.125 * span, math.log10(low) + 0.03 * span, math.log10(high) - 0.05 * span)
    for height, (_, (system, x, y, value, color)) in zip(heights, labels):
        axes.annotate(NAMES.get(system, system), xy=(x, y), xytext=(1.04, (height - math.log10(low)) / span),
                      textcoords="axes fraction", color=color, fontsize=10.5, fontweight="bold", va="bottom",
                      annotation_clip=False)
        axes.annotate(value, xy=(x, y), xytext=(1.04, (height - math.log10(low)) / span - 0.008),
                      textcoords="axes fraction", color=INK, fontsize=9, va="top", annotation_clip=False)

    axes.set_xlim(contexts[0] / 2**0.18, contexts[-1] * 2**0.12)
    axes.xaxis.set_major_locator(FixedLocator(contexts))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tokens_text(round(x))))
    axes.yaxis.set_major_locator(FixedLocator(ticks(low, high, text)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: text(y)))
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8, zorder=0)
    axes.tick_params(length=0, colors=FAINT, labelsize=9.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8c8c8")


def caption(data):
    machine, settings, backend = data["machine"], data["settings"], data["backend"]
    model = settings["model"] if settings["model"] not in ("custom", "file") else f"{settings['model']} geometry"
    first = (f"{model}: {settings['heads']} query and {settings['kv_heads']} KV heads, head_dim {settings['head_dim']}, "
             f"{settings['attention_layers']} attention layers; KV {settings['storage']}. Compressed: {settings['preset']}, "
             f"window {settings['exact_window']}, blocks of {settings['block_size']}, partners {settings['partner']}.")
    second = (f"{machine['cpu']}, {backend['threads']} of {machine['cores']} cores, {backend['policy']}, "
              f"butterfly {data['version']}, {data['date'][:10]}. Attention alone; factors are dense / system at the "
              f"longest context, above 1 is better.")
    return first, second


def draw(data, path):
    rungs = measured_rungs(data, path)
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "ladder",
                         "axes.edgecolor": "#c8c8c8"})
    figure, grid = plt.subplots(2, 2, figsize=(12.4, 9.2))
    figure.subplots_adjust(left=0.075, right=0.885, top=0.865, bottom=0.125, wspace=0.62, hspace=0.5)
    for axes, panel in zip(grid.flat, PANELS):
        draw_panel(axes, data, rungs, panel)
    for axes in grid[1]:
        axes.set_xlabel("context, tokens", color=FAINT, fontsize=9.5)
    figure.text(0.03, 0.955, "The context ladder", fontsize=18, fontweight="bold", color=INK)
    for height, line in zip((0.043, 0.02), caption(data)):
        figure.text(0.03, height, line, fontsize=8.8, color=FAINT)
    return figure


if __name__ == "__main__":
    figures.run(draw, __doc__, "context_ladder", "ladder")
