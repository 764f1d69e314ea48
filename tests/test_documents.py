"""The documents quote what the sources say: messages, and options of commands."""

import ast
import importlib
import re
import tomllib
from pathlib import Path

import click
import pytest

from amlr.benchmarks.report.schema import read_report
from amlr.benchmarks.report.tables import number
from amlr.runtime.providers.registry import PROVIDERS

ROOT = Path(__file__).parents[1]
ROOMS = ("kernels", "runtime", "serving", "training", "export", "benchmarks", "src/amlr")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# A line of a code block, with lines that end in a backslash joined.
_COMMAND = re.compile(r"(?:^|[|;&(`]\s*)(amlr-[a-z]+)\b([^|;&`]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)(--[a-z][a-z0-9-]*)")


def literals() -> str:
    """All strings of the sources; what an f-string fills in is a line break."""
    texts = []
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else "\n" for p in node.values)
                    texts.append("".join(str(part) for part in parts))
    return "\n".join(texts)


def quoted_messages() -> list[str]:
    """Messages of the troubleshooting page, which stand alone in a cell."""
    text = (ROOT / "docs" / "howto" / "troubleshoot.md").read_text(encoding="utf-8")
    cells = re.findall(r"\| `([^`|]* [^`|]*)` (?=\|)", text)
    return [cell for cell in cells if not cell.startswith("amlr-")]


def test_quoted_messages_are_in_the_sources() -> None:
    said = literals()
    messages = quoted_messages()
    assert len(messages) > 20
    missing = [
        fragment.strip()
        for message in messages
        for fragment in message.split("...")
        if len(fragment.strip()) > 4 and fragment.strip() not in said
    ]
    assert missing == []


def commands() -> dict[str, click.Command]:
    """The commands by the names that pyproject.toml gives them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [name for name in project["scripts"] if name.startswith("amlr-")]
    group = importlib.import_module("amlr.cli").main
    with click.Context(group) as ctx:
        return {name: group.get_command(ctx, name.removeprefix("amlr-")) for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_command_lines_use_options_that_exist(page: Path) -> None:
    known = commands()
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    wrong = []
    for name, rest in _COMMAND.findall(text):
        command = known.get(name)
        if command is None:
            continue
        options = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        wrong += [f"{name} {option}" for option in _OPTION.findall(rest) if option not in options]
    assert wrong == []


def test_the_support_matrix_names_every_provider() -> None:
    text = (ROOT / "docs" / "reference" / "support.md").read_text(encoding="utf-8")
    table = text.partition("| provider |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == set(PROVIDERS)


def test_the_picture_of_speed_shows_the_committed_report() -> None:
    report = read_report(ROOT / "docs" / "measurements" / "cpu" / "small.json")
    picture = (ROOT / "docs" / "figures" / "speed.svg").read_text(encoding="utf-8")
    rows = [row for row in report.rows if (row.batch, row.precision) == (16, "fp32")]
    assert {row.workload for row in rows} == {"cold", "hit"}
    for row in rows:
        assert row.p50_ms is not None
        assert f">{row.backend}<" in picture
        assert f">{number(row.p50_ms / 16)} ms<" in picture.replace(" <tspan", "<tspan")
