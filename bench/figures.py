# SPDX-License-Identifier: MIT
"""What the programs that draw figures from the JSON of a bench program share: reading, refusing, saving."""

import argparse
import json
import pathlib
import sys

PROGRAM = pathlib.Path(sys.argv[0]).stem


def fail(text):
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    sys.exit(2)


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except (ValueError, RecursionError) as error:
        fail(f"{path} is no JSON: {error}")


def resolution(text):
    dpi = int(text)
    if not 20 <= dpi <= 2000:
        raise argparse.ArgumentTypeError(f"{dpi} is not in [20, 2000]")
    return dpi


def run(draw, about, source, name):
    """Draws what `source` --json FILE wrote, by draw(the JSON, its path), to <name>.png and <name>.svg."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", help=f"what {source} --json FILE wrote")
    parser.add_argument("--out", default=name, help=f"path of the figures without .png and .svg (default: {name})")
    parser.add_argument("--dpi", type=resolution, default=160, help="of the PNG (default: 160)")
    arguments = parser.parse_args()
    data = read_json(arguments.json)
    try:
        figure = draw(data, arguments.json)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        fail(f"{arguments.json} is not what {source} --json writes: {type(error).__name__}: {error}")
    try:
        for kind in ("png", "svg"):
            figure.savefig(f"{arguments.out}.{kind}", dpi=arguments.dpi, facecolor="white",
                           metadata={"Date": None} if kind == "svg" else None)
            print(f"{arguments.out}.{kind}")
    except OSError as error:
        fail(f"{arguments.out}: {error.strerror}")
