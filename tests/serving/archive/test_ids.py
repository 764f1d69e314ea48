"""Ids of every type that Parquet has come back as what they are, in parts of both kinds."""

import datetime
import decimal
import io
import json
from pathlib import Path
from typing import Any

import pytest

from amlr.runtime.results import Result
from amlr.serving.archive.parts import JsonPart, ParquetPart, record
from amlr.serving.archive.plan import plan_chunks
from amlr.serving.archive.rows import Columns, Row
from amlr.serving.archive.sources import find_sources, read_piece, scan

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

_MOMENT = datetime.datetime(2024, 2, 29, 13, 5, 6, 700000)
_AMOUNT = decimal.Decimal("1001.50")
IDS: list[tuple[Any, Any, str]] = [
    (pa.string(), "ä", "ä"),
    (pa.large_string(), "00012", "00012"),
    (pa.string_view(), "x", "x"),
    (pa.dictionary(pa.int32(), pa.string()), "x", "x"),
    (pa.uint64(), 2**64 - 1, str(2**64 - 1)),
    (pa.float64(), 1.5, "1.5"),
    (pa.float64(), float("nan"), "nan"),
    (pa.float32(), float("-inf"), "-inf"),
    (pa.bool_(), True, "true"),
    (pa.decimal128(12, 2), _AMOUNT, "1001.50"),
    (pa.decimal256(50, 0), decimal.Decimal(10**40), str(10**40)),
    (pa.date32(), _MOMENT.date(), "2024-02-29"),
    (pa.date64(), _MOMENT.date(), "2024-02-29"),
    (pa.timestamp("us"), _MOMENT, "2024-02-29T13:05:06.700000"),
    (pa.timestamp("s", "UTC"), _MOMENT.replace(microsecond=0), "2024-02-29T13:05:06+00:00"),
    (pa.time32("s"), _MOMENT.time().replace(microsecond=0), "13:05:06"),
    (pa.duration("s"), datetime.timedelta(days=1, seconds=2), "1 day, 0:00:02"),
    (pa.binary(), "ä".encode(), "ä"),
    (pa.large_binary(), b"\xff\x00", "ff00"),
    (pa.binary(4), b"abcd", "abcd"),
    (pa.list_(pa.date32()), [_MOMENT.date()], '["2024-02-29"]'),
    (pa.struct([("a", pa.decimal128(12, 2))]), {"a": _AMOUNT}, '{"a": "1001.50"}'),
    (pa.null(), None, ""),
]


def _row(folder: Path, kind: Any, value: Any) -> tuple[Row, bool]:
    table = pa.table({"id": pa.array([value], kind), "text": ["Paris"]})
    pq.write_table(table, folder / "in.parquet")
    (source,) = find_sources((str(folder / "in.parquet"),), "auto", Columns())
    ((piece,),) = [chunk.pieces for chunk in plan_chunks([scan(source)], 10)]
    (row,) = read_piece(source, piece, Columns())
    return row, source.id_is_integer


@pytest.mark.parametrize(("kind", "value", "wanted"), IDS, ids=lambda item: str(item)[:24])
def test_an_id_comes_back(tmp_path: Path, kind: Any, value: Any, wanted: str) -> None:
    row, is_integer = _row(tmp_path, kind, value)
    values = record(row, Result(provider="p", precision="fp32"))
    lines = io.BytesIO()
    JsonPart(lines).write([dict(values)])

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    found = json.loads(lines.getvalue(), parse_constant=refuse)["id"]
    as_text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
    assert as_text == (wanted or "null")
    with (tmp_path / "out.parquet").open("wb") as file:
        part = ParquetPart(file, is_integer, {})
        part.write([values])
        part.close()
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [wanted or None]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint32()])
def test_whole_numbers_stay_numbers(tmp_path: Path, kind: Any) -> None:
    row, is_integer = _row(tmp_path, kind, 7)
    assert is_integer
    with (tmp_path / "out.parquet").open("wb") as file:
        part = ParquetPart(file, is_integer, {})
        part.write([record(row, Result(provider="p", precision="fp32"))])
        part.close()
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == [7]
