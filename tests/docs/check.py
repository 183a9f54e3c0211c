#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks README.md and docs/*.md against the tree; prints every defect and exits with 1 where there is one.

  links      a relative link leads to a file, and its #anchor to a heading of that file
  snippets   a block ```cpp is a run of lines of one of tests/docs/*.cpp (indentation aside), which compile and run;
             the block of README.md is all of tests/docs/readme.cpp after its first line, and the blocks of
             adding-a-backend.md are, one after the other, all of adding_a_backend.cpp after its first two
  readers    every page can be reached from README.md
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

WHOLE = {"adding-a-backend.md": "adding_a_backend.cpp"}  # pages that show a whole program


def slug(heading):
    """The anchor a forge makes of a heading."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def split(text):
    """Prose without fenced blocks and comments, and the blocks as (language, lines, line number)."""
    prose, blocks, fence = [], [], None
    for number, line in enumerate(text.splitlines(), 1):
        mark = re.match(r"\s*```(\w*)", line)
        if mark and fence is None:
            fence = (mark.group(1), [], number)
        elif mark:
            blocks.append(fence)
            fence = None
        elif fence is not None:
            fence[1].append(line)
        else:
            prose.append(line)
    if fence is not None:
        raise ValueError(f"the block of line {fence[2]} has no end")
    return re.sub(r"<!--.*?-->", "", "\n".join(prose), flags=re.S), blocks


def anchors(path):
    return {slug(h) for h in re.findall(r"^#+ +(.*)$", split(path.read_text())[0], flags=re.M)}


def links(prose):
    prose = re.sub(r"`[^`]*`", "", prose)
    return re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose)


def stripped(lines):
    return [line.strip() for line in lines]


def contains(lines, part):
    return any(lines[i : i + len(part)] == part for i in range(len(lines) - len(part) + 1))


def main():
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    units = {p.name: stripped(p.read_text().splitlines()) for p in sorted(pathlib.Path(__file__).parent.glob("*.cpp"))}
    defects, leads_to, counted = [], {}, [0, 0]
    for page in pages:
        name = page.relative_to(ROOT).as_posix()
        try:
            prose, blocks = split(page.read_text())
        except ValueError as error:
            defects.append(f"{name}: {error}")
            continue
        leads_to[page] = set()
        for link in links(prose):
            if re.match(r"[a-z]+:", link):
                continue
            counted[0] += 1
            target, _, anchor = link.partition("#")
            path = (page.parent / target).resolve() if target else page
            if not path.exists():
                defects.append(f"{name}: dead link {link}")
            elif anchor and path.suffix == ".md" and anchor not in anchors(path):
                defects.append(f"{name}: {link}: no such heading")
            leads_to[page].add(path)
        for language, lines, number in blocks:
            if language != "cpp":
                continue
            counted[1] += 1
            block = stripped(lines)
            if page.name == "README.md":
                if block != units["readme.cpp"][1:]:
                    defects.append(f"{name}:{number}: the block is not tests/docs/readme.cpp")
            elif not any(contains(unit, block) for unit in units.values()):
                defects.append(f"{name}:{number}: the block stands in no tests/docs/*.cpp")
        whole = units[WHOLE[page.name]][2:] if page.name in WHOLE else []
        shown = [line for language, lines, _ in blocks if language == "cpp" for line in stripped(lines)]
        if whole and [line for line in whole if line] != [line for line in shown if line]:
            defects.append(f"{name}: the blocks together are not tests/docs/{WHOLE[page.name]}")

    seen, open_pages = set(), [pages[0]]
    while open_pages:
        page = open_pages.pop()
        if page not in seen:
            seen.add(page)
            open_pages += leads_to.get(page, ())
    defects += [f"{p.relative_to(ROOT).as_posix()}: no way here from README.md" for p in pages if p not in seen]

    if defects:
        print("\n".join(defects))
        return 1
    print(f"{len(pages)} pages, {counted[0]} links, {counted[1]} snippets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
