"""`bench.json`: written only if it fits the schema that ships with it."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from amlr.errors import InputError
from amlr.whole import write_whole

SCHEMA_VERSION = 1
_FILE = "bench.schema.json"


@cache
def load_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `bench.json`."""
    schema: dict[str, Any] = json.loads((files("amlr.benchmarks") / _FILE).read_text("utf-8"))
    return schema


def validate(report: dict[str, Any]) -> None:
    """Check a report.

    Raises:
        InputError: It does not fit; names the field.
    """
    import jsonschema

    try:
        jsonschema.validate(report, load_schema())
    except jsonschema.ValidationError as error:
        where = "/".join(str(part) for part in error.absolute_path) or "the top"
        raise InputError(
            f"not a bench report of schema {SCHEMA_VERSION}: at {where}: {error.message[:200]}"
        ) from error


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON; the file appears whole or not at all."""
    validate(report)
    write_whole(path, json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_report(path: Path) -> dict[str, Any]:
    """Read and check a report.

    Raises:
        InputError: Missing, no JSON, or of another form.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; make it with amlr-bench --json {path}"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    validate(report)
    return report
