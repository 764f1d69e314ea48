"""The plan of a run: which rows make up which part. The same input gives the same plan.

Rows that show the same picture may be kept in one part, so that each picture is encoded once.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import count, groupby, islice
from operator import itemgetter
from typing import Any, Self

from amlr.errors import InputError
from amlr.runtime import Engine
from amlr.runtime.options import EngineOptions
from amlr.serving.archive.rows import Columns, Row
from amlr.serving.archive.sources import (
    Piece,
    Source,
    open_parquet,
    parse_record,
    read_piece,
    record_offsets,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run, as the user asked for it; plain values, so that they can be sent anywhere.

    Attributes:
        inputs: Files, folders or patterns.
        output: Folder of the parts.
        bundle: Folder of the bundle.
        manifest_sha256: Expected hash of its manifest, or None.
        engine: How workers open it.
        ray: Address of a Ray cluster, `local` for one of its own, None for plain processes.
        chunk_rows: Rows of a part.
        group_by_picture: Let no part end between neighbouring rows with the same picture.
    """

    inputs: tuple[str, ...]
    output: str
    bundle: str
    manifest_sha256: str | None
    engine: EngineOptions
    workers: int
    columns: Columns = field(default_factory=Columns)
    input_format: str = "auto"
    output_format: str = "parquet"
    image_root: str | None = None
    chunk_rows: int = 2000
    group_by_picture: bool = False
    resume: bool = False
    ray: str | None = None

    def options(self) -> dict[str, Any]:
        """Options that must match on --resume; the executor may differ."""
        return {
            "provider": self.engine.provider,
            "precision": self.engine.precision,
            "image": self.engine.image,
            "columns": asdict(self.columns),
            "input_format": self.input_format,
            "output_format": self.output_format,
            "image_root": self.image_root,
            "chunk_rows": self.chunk_rows,
            "group_by_picture": self.group_by_picture,
        }

    def load_engine(self) -> Engine:
        """Open the engine.

        Raises:
            AmlrError: As `Engine.load`.
        """
        return Engine.load(self.bundle, manifest_sha256=self.manifest_sha256, **asdict(self.engine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows that become one part."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from `asdict` values."""
        return cls(
            number=values["number"], pieces=tuple(Piece(**piece) for piece in values["pieces"])
        )


def plan_chunks(
    scans: Iterable[Iterable[tuple[int, int]]], most_rows: int, keep_runs: bool = False
) -> Iterator[Chunk]:
    """Cut the rows of all files into chunks of `most_rows`; only the last may be smaller.

    Args:
        scans: For each file, its runs of rows: (rows, byte where they begin).
        most_rows: Rows of a chunk.
        keep_runs: Never cut a run; a chunk ends with the run that fills it and may be larger.
    """
    number = chunk = filled = 0
    pieces: list[Piece] = []
    for source, runs in enumerate(scans):
        row = start = offset = 0
        for rows, begin in runs:
            left = rows
            while left:
                if row == start:
                    offset = begin
                take = left if keep_runs else min(left, most_rows - filled)
                row, left, filled = row + take, left - take, filled + take
                if filled >= most_rows:
                    pieces.append(_piece(source, start, row, offset, number))
                    yield Chunk(number=chunk, pieces=tuple(pieces))
                    number, chunk, filled, pieces = number + row - start, chunk + 1, 0, []
                    start = row
        if row > start:
            pieces.append(_piece(source, start, row, offset, number))
            number += row - start
    if pieces:
        yield Chunk(number=chunk, pieces=tuple(pieces))


def _piece(source: int, start: int, stop: int, offset: int, number: int) -> Piece:
    return Piece(source=source, start=start, stop=stop, offset=offset, number=number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the parts depend on.

    Attributes:
        options: Columns, formats, engine options.
        bundle: Hash of the bundle's manifest.
        sources: Input files.
        chunks: What becomes which part.
    """

    options: dict[str, Any]
    bundle: str
    sources: tuple[Source, ...]
    chunks: tuple[Chunk, ...]

    @property
    def id(self) -> str:
        """Hash of all of it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def rows(self) -> int:
        """Rows of the whole input."""
        return sum(chunk.rows for chunk in self.chunks)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from `asdict` values."""
        return cls(
            options=values["options"],
            bundle=values["bundle"],
            sources=tuple(
                Source(**{**source, "header": tuple(source["header"])})
                for source in values["sources"]
            ),
            chunks=tuple(Chunk.from_dict(chunk) for chunk in values["chunks"]),
        )

    def check_same(self, options: dict[str, Any], bundle: str, sources: list[Source]) -> None:
        """Refuse to resume what is no longer the same run.

        Raises:
            InputError: Options, bundle or input differ.
        """
        changed = [name for name in options if options[name] != self.options.get(name)]
        if bundle != self.bundle:
            changed.append("the bundle")
        old = {source.address: source for source in self.sources}
        new = {source.address: source for source in sources}
        changed += [
            f"the input {name}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
        if not changed and sources != list(self.sources):
            changed.append("the order of the inputs")
        if changed:
            raise InputError(
                f"cannot resume: changed since the run began: {', '.join(changed)}; "
                "change it back, or start a new run in another --output"
            )


def scan_pictures(source: Source, columns: Columns, most_rows: int) -> Iterator[tuple[int, int]]:
    """For each run of rows with one picture, its length and the byte where it begins.

    Args:
        source: Input file; it is read once more than without grouping.
        columns: Names of its columns.
        most_rows: Longest run. A picture of more rows is encoded once for each so many.
    """
    for _, run in groupby(_keys(source, columns), key=itemgetter(0)):
        while part := list(islice(run, most_rows)):
            yield len(part), part[0][1]


def _keys(source: Source, columns: Columns) -> Iterator[tuple[str | int | bytes, int]]:
    """A key of each row's picture, and the byte where the row begins."""
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
