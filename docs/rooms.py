"""How large each folder of the product is: `python docs/rooms.py [COMMIT ...]`.

Counts the lines of what is committed (.py, .cu, .cuh, .js, .css, .html; tests are not counted) and
the Python modules, the median module, the functions and the longest function. Without a commit it
reads the last one; with several it prints a table for each.
"""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import PurePosixPath

ROOMS = ("kernels", "runtime", "serving", "training", "export", "benchmarks")
SUFFIXES = {".py", ".cu", ".cuh", ".js", ".css", ".html"}


def git(*arguments: str) -> str:
    """What git prints."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout


def sources(commit: str) -> Iterator[tuple[str, PurePosixPath, str]]:
    """Room, path and text of each file; files outside the rooms belong to `others`."""
    for line in git("ls-tree", "-r", commit).splitlines():
        entry, _, name = line.partition("\t")
        path = PurePosixPath(name)
        # Links under src/ lead to the rooms; the documentation's tools are no part of the product.
        is_link = entry.startswith("120000")
        if is_link or path.suffix not in SUFFIXES or path.parts[0] in ("tests", "docs"):
            continue
        room = path.parts[0] if path.parts[0] in ROOMS else "others"
        yield room, path, git("cat-file", "-p", entry.split()[2])


def functions(text: str) -> Iterator[int]:
    """Lines of each function and method."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def table(commit: str) -> None:
    """Print one commit."""
    rows: dict[str, tuple[list[int], list[int], list[int]]] = {
        room: ([], [], []) for room in (*ROOMS, "others", "all")
    }
    for room, path, text in sources(commit):
        count = text.count("\n")
        for lines, modules, lengths in (rows[room], rows["all"]):
            lines.append(count)
            if path.suffix == ".py":
                modules.append(count)
                lengths += functions(text)
    print(
        f"{commit}\n{'room':12}{'lines':>8}{'modules':>9}{'median':>8}{'functions':>11}{'longest':>9}"
    )
    for room, (lines, modules, lengths) in rows.items():
        median, longest = statistics.median(modules or [0]), max(lengths, default=0)
        cells = f"{sum(lines):8}{len(modules):9}{median:8.0f}{len(lengths):11}{longest:9}"
        print(f"{room:12}{cells}")


if __name__ == "__main__":
    for name in sys.argv[1:] or ["HEAD"]:
        table(name)
