"""Mutants take minutes: they are collected only when this folder is named (`make mutants`)."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
CAUGHT = pytest.StashKey[list[tuple[str, str, str]]]()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    named = [Path(argument.split("::")[0]).resolve() for argument in config.args]
    return None if any(path.is_relative_to(HERE) for path in named) else True


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CAUGHT] = []


@pytest.fixture
def caught(request: pytest.FixtureRequest) -> list[tuple[str, str, str]]:
    """Rows (source, bug, what caught it) for the table at the end."""
    rows: list[tuple[str, str, str]] = request.config.stash[CAUGHT]
    return rows


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    rows = config.stash[CAUGHT]
    terminalreporter.section(f"{len(rows)} injected bugs were caught")
    for source, bug, by in rows:
        terminalreporter.write_line(f"| {source} | {bug} | {by} |")
