"""`bench.json`: written and read through the records, and the JSON Schema made from them.

python -m amlr.benchmarks.report.schema prints the schema that ships as `bench.schema.json`.
"""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from amlr.benchmarks.report.records import SCHEMA_VERSION, Report
from amlr.errors import InputError
from amlr.runtime.text_files import read_text
from amlr.whole import write_whole


@cache
def _adapter() -> TypeAdapter[Report]:
    return TypeAdapter(Report)


def json_schema() -> str:
    """The JSON Schema (draft 2020-12) of `bench.json`, as text."""
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "amlr-bench report",
    }
    return json.dumps(head | _plain(_adapter().json_schema()), indent=1) + "\n"


def _plain(schema: Any) -> Any:
    """Without titles: they repeat the names of fields."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _plain(value)
        for name, value in schema.items()
        if not (name == "title" and isinstance(value, str))
    }


def parse_report(text: str, source: str = "the report") -> Report:
    """A report out of JSON.

    Raises:
        InputError: It does not fit; names the field.
    """
    try:
        return _adapter().validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise InputError(f"{source} is not JSON: {first['msg']}") from error
        where = "/".join(str(part) for part in first["loc"]) or "the top"
        raise InputError(
            f"{source} is not a bench report of schema {SCHEMA_VERSION}: at {where}: {first['msg']}"
        ) from error


def report_json(report: Report) -> str:
    """A report as JSON.

    Raises:
        InputError: A field holds what the schema does not allow.
    """
    text = json.dumps(asdict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    parse_report(text)
    return text


def write_report(path: Path, report: Report) -> None:
    """Write a report as JSON; the file appears whole or not at all."""
    write_whole(path, report_json(report))


def read_report(path: Path) -> Report:
    """Read and check a report.

    Raises:
        InputError: Missing, no JSON, or of another form.
    """
    return parse_report(read_text(path, "a report of amlr-bench --json"), str(path))


if __name__ == "__main__":
    print(json_schema(), end="")
