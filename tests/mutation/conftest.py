"""Mutants take minutes: they are collected only when this folder is named (`make mutants`)."""

from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
Caught = Callable[[str, str, str], None]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


@pytest.fixture
def caught(record_property: Callable[[str, object], None]) -> Caught:
    """Adds a row (source, bug, what caught it) to the table at the end."""
    return lambda source, bug, by: record_property("caught", (source, bug, by))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    rows = [
        value for report in passed for name, value in report.user_properties if name == "caught"
    ]
    terminalreporter.section(f"{len(rows)} injected bugs were caught")
    for source, bug, by in rows:
        terminalreporter.write_line(f"| {source} | {bug} | {by} |")
