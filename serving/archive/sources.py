"""Input files: which there are, where their records begin, and the rows of a range."""

import codecs
import csv
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from amlr.errors import InputError
from amlr.runtime.text_files import (
    START_BYTES,
    AsUtf8,
    TextForm,
    is_json_array,
    json_array,
    not_utf8,
    text_form,
)
from amlr.serving.archive.locations import fingerprint, open_location
from amlr.serving.archive.rows import Columns, Row, bad_row, make_row

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_DELIMITERS = {"csv": ",", "tsv": "\t"}
# What packed files that are damaged raise.
_UNPACKING = (OSError, EOFError, zlib.error, lzma.LZMAError)
_MOST_BYTES = 256_000_000
_READ_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input file.

    Attributes:
        address: Where it is.
        format: jsonl, csv, tsv or parquet.
        fingerprint: Changes whenever the content does.
        header: Column names (CSV and Parquet).
        id_is_integer: Whether the id column holds whole numbers by type.
        encoding: Of a text format, as `TextForm` has it.
        has_cr_ends: Whether lines end with a carriage return alone.
    """

    address: str
    format: str
    fingerprint: str
    header: tuple[str, ...] = ()
    id_is_integer: bool = False
    encoding: str = "utf-8"
    has_cr_ends: bool = False

    @property
    def form(self) -> TextForm:
        """Encoding and line ends of a text format."""
        return TextForm(encoding=self.encoding, has_cr_ends=self.has_cr_ends)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows `start`..`stop` of one file, which begin at byte `offset`; `number` is the first's."""

    source: int
    start: int
    stop: int
    offset: int
    number: int


def find_sources(
    inputs: tuple[str, ...], kind: str, columns: Columns, output: str | None = None
) -> list[Source]:
    """Files of paths, folders and patterns, in the order given, each pattern sorted.

    Args:
        inputs: As the user gave them.
        kind: Format of all, or `auto`.
        columns: Names of the columns.
        output: Folder of the parts; what lies in it is no input.

    Raises:
        InputError: Something is absent, named twice, or of no known format.
    """
    addresses: list[str] = []
    out = None if output is None else _full_address(output) + "/"
    for text in inputs:
        fs, path = open_location(text)
        # A file may be called posts[1].csv.
        if any(mark in path for mark in "*?[") and not fs.exists(path):
            found = sorted(map(str, fs.glob(path)))
        elif fs.isdir(path):
            found = [str(name) for name in sorted(fs.find(path)) if _format(str(name))]
        else:
            found = [path]
        if not found:
            raise InputError(f"no input file at {text}; expected .jsonl, .csv or .parquet files")
        full = [str(fs.unstrip_protocol(name)) for name in found]
        addresses += [name for name in full if out is None or not name.startswith(out)]
    if len(set(addresses)) < len(addresses):
        raise InputError("an input file is named twice; name each once")
    return [_source(address, kind, columns) for address in addresses]


def _full_address(address: str) -> str:
    fs, path = open_location(address)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _format(name: str) -> str | None:
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return FORMATS.get("." + name.rpartition(".")[2].lower())


def _source(address: str, kind: str, columns: Columns) -> Source:
    found = _format(address) if kind == "auto" else kind
    if found is None:
        raise InputError(f"cannot tell the format of {address}; give --input-format")
    mark = fingerprint(address)
    header: tuple[str, ...] = ()
    is_integer = False
    form = TextForm()
    if found == "parquet":
        import pyarrow as pa

        with open_parquet(address) as file:
            schema = file.schema_arrow
            header = tuple(schema.names)
            if columns.id in header:
                kind_of_id = schema.field(columns.id).type
                # Parts hold signed ones, into which the largest unsigned do not fit.
                is_integer = pa.types.is_integer(kind_of_id) and kind_of_id != pa.uint64()
    else:
        form = _form(address, found)
    if found in ("csv", "tsv"):
        header = _header(address, found, form)
    if found != "jsonl" and columns.text not in header:
        raise InputError(
            f"{address} has no column {columns.text!r}, only: {', '.join(header)}; "
            "give --text-column"
        )
    return Source(
        address=address,
        format=found,
        fingerprint=mark,
        header=header,
        id_is_integer=is_integer,
        encoding=form.encoding,
        has_cr_ends=form.has_cr_ends,
    )


def _form(address: str, kind: str) -> TextForm:
    with _open(address) as stream:
        start = stream.read(START_BYTES)
    form = text_form(start, address)
    if kind == "jsonl" and is_json_array(start.decode(form.encoding, "ignore")):
        raise json_array(address)
    return form


def _header(address: str, kind: str, form: TextForm) -> tuple[str, ...]:
    with _open(address, form) as stream:
        try:
            record = next(_records(stream, kind), b"")
            return tuple(_fields(record.removeprefix(codecs.BOM_UTF8), kind))
        except csv.Error as error:
            raise InputError(f"the first line of {address} names no columns: {error}") from error


def scan(source: Source) -> Iterator[tuple[int, int]]:
    """For each run of rows, its length and the byte where it begins."""
    if source.format == "parquet":
        with open_parquet(source.address) as file:
            yield file.metadata.num_rows, 0
        return
    yield from ((1, offset) for offset, _ in record_offsets(source))


def record_offsets(source: Source) -> Iterator[tuple[int, bytes]]:
    """The byte where each record begins, and the record."""
    offset = 0
    is_first = source.format != "jsonl"
    with _open(source.address, source.form) as stream:
        for record in _records(stream, source.format):
            if not is_first and not _is_blank(record, source.format):
                yield offset, record
            is_first = False
            offset += len(record)


def read_piece(source: Source, piece: Piece, columns: Columns) -> Iterator[Row]:
    """The rows of a piece, streamed."""
    if source.format == "parquet":
        yield from _read_parquet(source, piece, columns)
        return
    number, stop = piece.number, piece.number + piece.stop - piece.start
    with _open(source.address, source.form) as stream:
        stream.seek(piece.offset)
        for record in _records(stream, source.format):
            if number == stop:
                return
            if not _is_blank(record, source.format):
                yield parse_record(number, record, source, columns)
                number += 1
    if number != stop:
        raise InputError(f"{source.address} is shorter than when the run began; start a new run")


def parse_record(number: int, record: bytes, source: Source, columns: Columns) -> Row:
    """A row of a text format."""
    try:
        if source.format == "jsonl":
            return make_row(number, json.loads(record), columns)
        fields = _fields(record, source.format)
    # Bad UTF-8 and bad JSON are ValueErrors; deep nesting overflows the stack.
    except (ValueError, RecursionError, csv.Error) as error:
        return bad_row(number, f"row {number} cannot be read: {error}")
    if len(fields) > len(source.header):
        return bad_row(number, f"row {number} has {len(fields)} of {len(source.header)} fields")
    return make_row(number, dict(zip(source.header, fields, strict=False)), columns)


def _fields(record: bytes, kind: str) -> list[str]:
    csv.field_size_limit(_MOST_BYTES)
    # Line by line, as `_records` had it.
    lines = io.StringIO(record.decode("utf-8"), newline="\n")
    return next(csv.reader(lines, delimiter=_DELIMITERS[kind]), [])


def _is_blank(record: bytes, kind: str) -> bool:
    # In a table, tabs and blanks are fields.
    return not (record.strip() if kind == "jsonl" else record.strip(b"\r\n"))


def _records(stream: Any, kind: str) -> Iterator[bytes]:
    """Lines; of CSV, as many as a record has."""
    if kind == "jsonl":
        yield from stream
        return
    csv.field_size_limit(_MOST_BYTES)
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for line in stream:
            taken.append(line)
            # Any byte is a character of Latin-1, and those that matter to CSV are themselves.
            yield line.decode("latin-1")

    # Only the reader itself can tell a quote that opens a field from one within a text: 5" tall.
    reader = csv.reader(lines(), delimiter=_DELIMITERS[kind])
    while True:
        try:
            next(reader)
        except StopIteration:
            return
        except csv.Error:
            # `_fields` meets the same error and makes a bad row of it.
            if not taken:
                return
        yield b"".join(taken)
        taken.clear()


def _read_parquet(source: Source, piece: Piece, columns: Columns) -> Iterator[Row]:
    names = [columns.id, columns.text, columns.image, columns.image_bytes, columns.words]
    with open_parquet(source.address) as file:
        sizes = (file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        bounds = list(pairwise(accumulate(sizes, initial=0)))
        groups = [i for i, (a, b) in enumerate(bounds) if a < piece.stop and b > piece.start]
        place = bounds[groups[0]][0] if groups else 0
        wanted = [name for name in names if name in source.header]
        for batch in file.iter_batches(_READ_ROWS, row_groups=groups, columns=wanted):
            begin, after = max(place, piece.start), min(place + batch.num_rows, piece.stop)
            rows = batch.slice(begin - place, max(0, after - begin)).to_pylist()
            for number, values in enumerate(rows, start=piece.number + begin - piece.start):
                yield make_row(number, values, columns)
            place += batch.num_rows
            if place >= piece.stop:
                return


@contextmanager
def _open(address: str, form: TextForm | None = None) -> Iterator[Any]:
    """The unpacked bytes; where a form is given that is not plain, as UTF-8 with line feeds.

    Raises:
        InputError: It cannot be opened, unpacked or decoded.
    """
    import fsspec

    try:
        file = fsspec.open(address, "rb", compression="infer").open()
    except (OSError, ImportError, ValueError) as error:
        raise InputError(f"cannot read the input {address}: {error}") from error
    with file:
        try:
            yield file if form is None or form.is_plain else io.BufferedReader(AsUtf8(file, form))
        except UnicodeDecodeError as error:
            raise not_utf8(address, error) from error
        except _UNPACKING as error:
            raise InputError(f"cannot unpack {address}: {error}") from error


def open_parquet(address: str) -> Any:
    """An open Parquet file."""
    import pyarrow.parquet as pq

    fs, path = open_location(address)
    try:
        return pq.ParquetFile(fs.open(path, "rb"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {address} as Parquet: {error}") from error
