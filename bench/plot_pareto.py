#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Draws what codec_fidelity --json FILE wrote: error over bytes, for keys alone and for keys with values.

    /usr/bin/python3 bench/plot_pareto.py fidelity.json --out figures/pareto      figures/pareto.png and figures/pareto.svg
"""

import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

import figures

INK, FAINT = "#222222", "#8a8a8a"
# Okabe and Ito's palette, told apart by shape as well: family -> colour, marker, size, legend.
FAMILIES = {
    "published": ("#d55e00", "X", 62, "published formats"),
    "ggml": ("#0072b2", "s", 44, "ggml"),
    "channels": ("#009e73", "^", 54, "per channel and token (KIVI)"),
    "affine": ("#aaaaaa", "o", 26, "affine groups"),
    "trellis": ("#cc79a7", "P", 60, "trellis"),
    "rotated": ("#222222", "D", 44, "this library: rotated levels, int8"),
}
LABELS = {"lloyd_max4": "4 levels", "lloyd_max6": "6", "lloyd_max8": "8", "lloyd_max16": "16", "lloyd_max32": "32"}


def family_of(codec, origin):
    if origin in ("published", "ggml"):
        return origin
    if codec.startswith("affine_channels"):
        return "channels"
    if codec.startswith("affine"):
        return "affine"
    if codec.startswith("trellis"):
        return "trellis"
    return "rotated"


def geometric(values):
    values = [max(v, 1e-12) for v in values]
    return math.exp(sum(map(math.log, values)) / len(values))


def key_points(layers):
    """(family, name, bytes of a key, KL) of one layer's codecs; geometric means over the inputs."""
    points = []
    for same in zip(*(layer["codecs"] for layer in layers)):
        first = same[0]
        if "keys" not in first or first["origin"] == "raw" or first["codec"].endswith("_unbiased"):
            continue
        family = family_of(first["codec"], first["origin"])
        points.append((family, first["codec"], first["keys"]["bytes_of_128"] * layers[0]["head_dim"] / 128,
                       geometric([codec["keys"]["plain"]["kl"] for codec in same])))
    return points


def pair_points(layers):
    """(family, name, bytes of a key and a value, error of the output), likewise."""
    points = []
    for same in zip(*(layer["pairs"] for layer in layers)):
        first = same[0]
        if "flat" not in first:
            continue
        family = {"published": "published", "ggml": "ggml", "KIVI": "channels"}.get(first["group"], "rotated")
        if first["keys"].startswith("trellis"):
            family = "trellis"
        points.append((family, first["pair"], first["bytes_of_128"] * layers[0]["head_dim"] / 128,
                       geometric([p["flat"]["error"] for p in same])))
    return points


def front(points):
    """The points that no other of them beats in both ways, from left to right."""
    best, line = math.inf, []
    for x, y in sorted(points):
        if y < best:
            best = y
            line.append((x, y))
    return line


def label_of(family, name):
    if family == "rotated":
        return LABELS.get(name, name)
    if family == "published":
        return name.replace("turbo_kv_", "turbo ").replace("uniform_", "uniform ").replace("_", " ")
    return name.replace("ggml_", "") if family == "ggml" else ""


CORNERS = [(5, 3, "left", "bottom"), (5, -3, "left", "top"), (-5, -3, "right", "top"), (-5, 3, "right", "bottom"),
           (5, 11, "left", "bottom"), (5, -11, "left", "top"), (-5, -11, "right", "top"), (-5, 11, "right", "bottom")]


def place_labels(axes, labels, points):
    """Writes each label at the first corner of its point where no label and no point stands; if there is none, nowhere."""
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    taken = []
    marks = [axes.transData.transform(p) for p in points]
    frame = axes.get_window_extent(renderer)
    for x, y, text, color in labels:
        for dx, dy, ha, va in CORNERS:
            note = axes.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", fontsize=6.8, color=color, ha=ha,
                                 va=va, zorder=5, annotation_clip=False)
            box = note.get_window_extent(renderer)
            free = box.x1 < frame.x1 + 0.06 * frame.width and not any(box.overlaps(other) for other in taken)
            if free and not any(box.x0 < px < box.x1 and box.y0 < py < box.y1 for px, py in marks):
                taken.append(box)
                break
            note.remove()


def draw_panel(axes, points, ours, values):
    """`values`: of a token, one head: head_dim of keys, or twice that."""
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    for family, (color, marker, size, _) in FAMILIES.items():
        chosen = [(x, y) for f, _, x, y in points if f == family]
        if chosen:
            axes.scatter([x for x, _ in chosen], [y for _, y in chosen], s=size, c=color, marker=marker, zorder=4,
                         linewidths=0.6, edgecolors="white")
    line = front([(x, y) for f, _, x, y in points if f in ours])
    axes.plot([x for x, _ in line], [y for _, y in line], color=FAMILIES["rotated"][0], linewidth=1.1, zorder=3)
    axes.set_xlim(1.4 * values / 8, 11.5 * values / 8)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks([bits * values / 8 for bits in (1.5, 2, 3, 4, 5, 6, 8, 10)])
    axes.minorticks_off()
    axes.grid(color="#ececec", linewidth=0.7, zorder=0)
    axes.tick_params(length=0, colors=FAINT, labelsize=8.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c8c8c8")
    ranked = sorted(points, key=lambda p: (list(FAMILIES)[::-1].index(p[0]), p[3]))
    labels = [(x, y, label_of(f, name), FAMILIES[f][0]) for f, name, x, y in ranked if label_of(f, name)]
    place_labels(axes, labels, [(x, y) for _, _, x, y in points])


def draw(data, _):
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "pareto"})
    inputs = data["inputs"]
    columns = list(zip(*(i["layers"] for i in inputs)))  # the same layer of every input
    figure, grid = plt.subplots(2, len(columns), figsize=(1.2 + 4.4 * len(columns), 9.4), squeeze=False)
    figure.subplots_adjust(left=0.9 / (1.2 + 4.4 * len(columns)), right=0.985, top=0.86, bottom=0.115, wspace=0.17,
                           hspace=0.3)
    for top, bottom, layers in zip(grid[0], grid[1], columns):
        head_dim = layers[0]["head_dim"]
        draw_panel(top, key_points(layers), ("rotated", "trellis"), head_dim)
        draw_panel(bottom, pair_points(layers), ("rotated", "trellis"), 2 * head_dim)
        top.set_title(layers[0]["layer"], loc="left", fontsize=12, fontweight="bold", color=INK)
        top.set_xlabel("bytes of a token and KV head: its key", fontsize=8.5, color=FAINT)
        bottom.set_xlabel("bytes of a token and KV head: key and value", fontsize=8.5, color=FAINT)
    grid[0][0].set_ylabel("keys packed: KL of the softmax, nats", fontsize=9.5, color=INK)
    grid[1][0].set_ylabel("both packed: error of the output", fontsize=9.5, color=INK)
    figure.text(0.02, 0.955, "What packed keys and values cost", fontsize=17, fontweight="bold", color=INK)
    handles = [plt.Line2D([], [], linestyle="", marker=m, color=c, markersize=7, label=text)
               for c, m, _, text in FAMILIES.values()]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.015, 0.945), ncol=min(6, 2 * len(columns)),
                  frameon=False, fontsize=9, handletextpad=0.2, columnspacing=1.4)
    first = inputs[0]["layers"][0]
    figure.text(0.02, 0.035, f"{' and '.join(i['from'] for i in inputs)}: heads {first['heads']}/{first['kv_heads']}, "
                f"{first['tokens']} tokens, head_dim {first['head_dim']}; {first['queries']} queries of each head from "
                f"{first['first_query']} to {first['last_query']}, no window.", fontsize=8.5, color=FAINT)
    figure.text(0.02, 0.015, f"Geometric means over the texts. Scales and paddings count; published formats count as if "
                f"rows filled their blocks of 128. butterfly {data['version']}, {data['date'][:10]}.", fontsize=8.5, color=FAINT)
    return figure


if __name__ == "__main__":
    figures.run(draw, __doc__, "codec_fidelity", "pareto")
