"""Writers of output parts: Parquet with typed columns, or JSON lines."""

import json
import math
from collections.abc import Mapping
from typing import Any

from amlr.runtime.results import Result
from amlr.serving.archive.rows import Row

SUFFIXES = {"parquet": ".parquet", "jsonl": ".jsonl"}


def schema(id_is_integer: bool, about: dict[str, str]) -> Any:
    """Arrow schema of a part; `about` goes into the file's metadata."""
    import pyarrow as pa

    note = pa.struct([("code", pa.string()), ("message", pa.string())])
    entity = pa.struct(
        [
            ("start", pa.int32()),
            ("end", pa.int32()),
            ("text", pa.string()),
            ("label", pa.string()),
            ("score", pa.float32()),
        ]
    )
    columns = [
        ("row", pa.int64()),
        ("id", pa.int64() if id_is_integer else pa.string()),
        ("entities", pa.list_(entity)),
        ("image_used", pa.bool_()),
        ("warnings", pa.list_(note)),
        ("error", note),
        ("provider", pa.string()),
        ("precision", pa.string()),
        ("certified", pa.bool_()),
    ]
    return pa.schema(columns, metadata={f"amlr.{name}": text for name, text in about.items()})


def plain(value: Any) -> Any:
    """A value as text where JSON has no form for it; what JSON knows stays.

    Decimals keep their digits, dates and times are ISO 8601, bytes are their UTF-8 text or, where
    they are none, hexadecimal digits. Numbers that JSON lacks (NaN, infinities) become text too,
    and half a surrogate pair, which UTF-8 lacks, a question mark.

    Example:
        >>> import datetime, decimal
        >>> plain(decimal.Decimal("10.50")), plain(datetime.date(2024, 2, 29))
        ('10.50', '2024-02-29')
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, Mapping):
        return {str(plain(name)): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def record(row: Row, result: Result) -> dict[str, Any]:
    """One output row."""
    values: dict[str, Any] = plain({"row": row.number, "id": row.id} | result.to_dict())
    return values


class ParquetPart:
    """Writes rows as one Parquet file, a row group at a time."""

    def __init__(self, file: Any, id_is_integer: bool, about: dict[str, str]) -> None:
        """Begin in an open binary file."""
        import pyarrow.parquet as pq

        self._schema = schema(id_is_integer, about)
        self._text_ids = not id_is_integer
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, records: list[dict[str, Any]]) -> None:
        """Add rows."""
        import pyarrow as pa

        for values in records:
            if self._text_ids and values["id"] is not None and not isinstance(values["id"], str):
                values["id"] = json.dumps(values["id"], ensure_ascii=False)
        self._writer.write_table(pa.Table.from_pylist(records, schema=self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class JsonPart:
    """Writes rows as JSON lines."""

    def __init__(self, file: Any) -> None:
        """Begin in an open binary file."""
        self._file = file

    def write(self, records: list[dict[str, Any]]) -> None:
        """Add rows."""
        for values in records:
            self._file.write(json.dumps(values, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """Nothing is left to do."""
