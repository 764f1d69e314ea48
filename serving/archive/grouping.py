"""Runs of rows that show the same picture, so that no chunk ends between them."""

import hashlib
from collections.abc import Iterator
from itertools import count

from amlr.serving.archive.rows import Columns, Row
from amlr.serving.archive.sources import (
    Piece,
    Source,
    open_parquet,
    parse_record,
    read_piece,
    record_offsets,
)


def scan_pictures(source: Source, columns: Columns, most_rows: int) -> Iterator[tuple[int, int]]:
    """For each run of rows with one picture, its length and the byte where it begins.

    Args:
        source: Input file; it is read once more than without grouping.
        columns: Names of its columns.
        most_rows: Longest run. A picture of more rows is encoded once for each so many.
    """
    length = begin = 0
    last: object = None
    for key, offset in _keys(source, columns):
        if length and (key != last or length == most_rows):
            yield length, begin
            length = 0
        if not length:
            begin = offset
        last, length = key, length + 1
    if length:
        yield length, begin


def _keys(source: Source, columns: Columns) -> Iterator[tuple[str | int | bytes, int]]:
    """What tells each row's picture from others, and the byte where the row begins."""
    alone = count()
    for row, offset in _rows(source, columns):
        if not row.image:
            yield next(alone), offset
        elif isinstance(row.image, bytes):
            yield hashlib.blake2b(row.image, digest_size=16).digest(), offset
        else:
            yield row.image, offset


def _rows(source: Source, columns: Columns) -> Iterator[tuple[Row, int]]:
    if source.format != "parquet":
        for number, (offset, record) in enumerate(record_offsets(source)):
            yield parse_record(number, record, source, columns), offset
        return
    with open_parquet(source.address) as file:
        rows = file.metadata.num_rows
    whole = Piece(source=0, start=0, stop=rows, offset=0, number=0)
    for row in read_piece(source, whole, columns):
        yield row, 0
