"""Results as an append-only file of JSON lines that survives a step killed in the middle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
RESULTS = "results.jsonl"


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and wait until it is on the disk.

    A half-written last line, left by a killed process, is closed first so that it spoils no other.
    """
    line = json.dumps(row, default=str).encode() + b"\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def read_rows(path: Path) -> list[Row]:
    """All whole rows; lines that a killed process left unfinished are skipped."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
