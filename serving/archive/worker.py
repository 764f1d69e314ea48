"""Tags one chunk after another and writes its part; the same code in a process or a Ray actor."""

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

from amlr import __version__
from amlr.errors import AmlrError
from amlr.runtime.results import Problem, Result, problem
from amlr.serving.archive.locations import Folder
from amlr.serving.archive.parts import SUFFIXES, JsonPart, ParquetPart, record
from amlr.serving.archive.plan import Chunk, Job
from amlr.serving.archive.rows import Row, make_post
from amlr.serving.archive.sources import Source, read_piece

_BATCH_ROWS = 128
_PLAIN_ATTEMPTS, _MAX_ATTEMPTS = 2, 40
_MAX_DEATHS = 2
_POISON: Problem = {
    "code": "worker_died",
    "message": "the process died twice at this row; it was not tagged",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What every worker of a run is told.

    Attributes:
        job: The run; its engine is that of one worker.
        sources: Input files.
        plan: The plan's id.
    """

    job: Job
    sources: tuple[Source, ...]
    plan: str


class Attempts:
    """Attempts at one chunk, kept in the output folder so that they outlive any process.

    Two plain attempts, then the chunk runs row by row with a note of each row before it is begun; a
    row at which the process died twice is kept with an error and never touched again.
    """

    def __init__(self, folder: Folder, chunk: int) -> None:
        """Count one more attempt.

        Raises:
            AmlrError: Workers die again and again; the machine is to blame, not the rows.
        """
        self._folder, self._name = folder, f"_run/tries/{chunk:05d}.json"
        saved: dict[str, Any] = folder.read_json(self._name) or {}
        self.starts: int = saved.get("starts", 0) + 1
        self.deaths: dict[str, int] = saved.get("deaths", {})
        at = saved.get("at")
        if at is not None:
            self.deaths[str(at)] = self.deaths.get(str(at), 0) + 1
        if self.starts > _MAX_ATTEMPTS:
            raise AmlrError(
                f"workers died {_MAX_ATTEMPTS} times on part {chunk}; is memory short? "
                "try fewer --workers, then --resume"
            )
        self._save(None)

    @property
    def is_careful(self) -> bool:
        """Whether to go row by row."""
        return self.starts > _PLAIN_ATTEMPTS

    def is_poison(self, number: int) -> bool:
        """Whether the process died too often at this row."""
        return self.deaths.get(str(number), 0) >= _MAX_DEATHS

    def begin(self, number: int) -> None:
        """Note the row before it is touched."""
        self._save(number)

    def finish(self) -> None:
        """Forget: the part is written."""
        self._folder.remove(self._name)

    def _save(self, at: int | None) -> None:
        values = {"starts": self.starts, "deaths": self.deaths, "at": at}
        self._folder.write_json(self._name, values)


class ChunkWorker:
    """One engine, one thread."""

    def __init__(self, work: Work) -> None:
        """Load the engine.

        Raises:
            AmlrError: As `Engine.load`.
        """
        self._work, self._job = work, work.job
        self._folder = Folder(self._job.output)
        self.engine = self._job.load_engine()

    def run(self, chunk: Chunk) -> dict[str, Any]:
        """Tag a chunk, publish its part, then its report.

        Returns:
            The report: rows, entities, failures, tiers, cache counters, seconds.
        """
        begun = time.monotonic()
        attempts = Attempts(self._folder, chunk.number)
        name = part_name(chunk.number, self._job.output_format)
        aside = self._folder.aside(SUFFIXES[self._job.output_format])
        before = self._counters()
        counts: Counter[str] = Counter()
        tiers: Counter[str] = Counter()
        with self._folder.fs.open(self._folder.path(aside), "wb") as file:
            part = self._part(file)
            for batch in _batches(self._rows(chunk), 1 if attempts.is_careful else _BATCH_ROWS):
                records = [record(row, result) for row, result in self._tag(batch, attempts)]
                for values in records:
                    counts["rows"] += 1
                    counts["entities"] += len(values["entities"])
                    counts["failed"] += values["error"] is not None
                    counts["warned"] += bool(values["warnings"])
                    counts["image_used"] += values["image_used"]
                    counts["certified"] += values["certified"] is True
                    tiers[f"{values['provider']} {values['precision']}"] += 1
                part.write(records)
            part.close()
        if counts["rows"] != chunk.rows:
            raise AmlrError(
                f"part {chunk.number} has {counts['rows']} rows, its plan {chunk.rows}; "
                "the input changed while it was read: start a new run"
            )
        size = self._folder.size(aside)
        self._folder.publish(aside, name)
        after = self._counters()
        report = {
            "chunk": chunk.number,
            "part": name,
            "bytes": size,
            **counts,
            **{key: after[key] - before[key] for key in after},
            "tiers": dict(tiers),
            "seconds": round(time.monotonic() - begun, 3),
            "attempts": attempts.starts,
            "peak_rss_mb": _peak_rss_mb(),
        }
        self._folder.write_json(report_name(chunk.number), report)
        attempts.finish()
        return report

    def _part(self, file: Any) -> ParquetPart | JsonPart:
        if self._job.output_format == "jsonl":
            return JsonPart(file)
        about = {
            "version": __version__,
            "manifest_sha256": self.engine.bundle.manifest_sha256,
            "plan": self._work.plan,
            "provider": self.engine.provider,
            "precision": self.engine.precision,
        }
        id_is_integer = all(source.id_is_integer for source in self._work.sources)
        return ParquetPart(file, id_is_integer, about)

    def _rows(self, chunk: Chunk) -> Iterator[Row]:
        sources, columns = self._work.sources, self._job.columns
        return chain.from_iterable(
            read_piece(sources[piece.source], piece, columns) for piece in chunk.pieces
        )

    def _tag(self, rows: tuple[Row, ...], attempts: Attempts) -> Iterator[tuple[Row, Result]]:
        if attempts.is_careful:
            (row,) = rows
            if attempts.is_poison(row.number):
                yield row, self._failed(_POISON)
                return
            attempts.begin(row.number)
        good = [row for row in rows if row.error is None]
        answers = iter(self._answers(good))
        for row in rows:
            yield row, next(answers) if row.error is None else self._failed(row.error)

    def _answers(self, rows: list[Row]) -> list[Result]:
        limit = self.engine.manifest.limits.max_bytes
        made = [make_post(row, self._job.image_root, limit) for row in rows]
        try:
            results = self.engine.tag_batch([post for post, _ in made])
        # One row may have broken the batch: the others must not suffer for it.
        except Exception as error:
            if len(rows) > 1:
                return [self._answers([row])[0] for row in rows]
            message = f"{type(error).__name__}: {error}"
            kept = error if isinstance(error, AmlrError) else AmlrError(message)
            return [self._failed(problem(kept))]
        return [
            result if warning is None else replace(result, warnings=(*result.warnings, warning))
            for result, (_, warning) in zip(results, made, strict=True)
        ]

    def _failed(self, error: Problem) -> Result:
        return Result(provider=self.engine.provider, precision=self.engine.precision, error=error)

    def _counters(self) -> dict[str, int]:
        pictures, answers = self.engine.image_cache, self.engine.answer_cache
        return {
            "picture_hits": pictures.hits,
            "pictures_encoded": pictures.misses,
            "answer_hits": answers.hits if answers else 0,
        }

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


def _batches(rows: Iterator[Row], size: int) -> Iterator[tuple[Row, ...]]:
    while batch := tuple(islice(rows, size)):
        yield batch


def part_name(chunk: int, kind: str) -> str:
    """File name of a part."""
    return f"part-{chunk:05d}{SUFFIXES[kind]}"


def report_name(chunk: int) -> str:
    """File name of a part's report."""
    return f"_run/done/{chunk:05d}.json"


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
