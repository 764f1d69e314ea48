"""Decoder speed: beside pytorch-crf, and segmental beside linear chain.

    python -m amlr.benchmarks.decoders

One process, one thread; the calls of a row take turns of 4 ms, and medians are compared, so a busy
machine slows all of them alike. Every timed call is the public one, validation included.

Shape letters: B batch, T steps, Y tags, U units, C classes, W words of all posts.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from amlr.benchmarks.harness.stats import median
from amlr.benchmarks.report.figures import Table
from amlr.cli_support import AmlrCommand, progress
from amlr.errors import BackendUnavailableError
from amlr.kernels import (
    Units,
    box_redecode,
    joint_scores,
    segmental_decode,
    tag_marginals,
    viterbi_decode,
)
from amlr.kernels.validation import Chain, check_chain

SIZES = ((1, 16), (1, 64), (8, 64), (32, 64), (256, 64), (256, 128))
TAGS = ("O", *(f"{kind}-{label}" for label in ("PER", "LOC", "ORG", "OTHER") for kind in "BI"))
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}
_TURN_S = 0.004
_MAX_SCALE = 6
Calls = dict[str, Callable[[], object]]
Row = dict[str, Any]


def interleave(calls: Calls, clock: Callable[[], float], seconds: float) -> dict[str, list[float]]:
    """Times of several calls that take turns of a few milliseconds, in seconds.

    Turns, because alternating single calls would time each of them with the caches another left.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(next(iter(times.values()))) < 5:
        for name, call in calls.items():
            call()
            turn_ends = time.perf_counter() + _TURN_S
            while True:
                started = clock()
                call()
                times[name].append(clock() - started)
                if time.perf_counter() >= turn_ends:
                    break
    return times


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedChain:
    """A batch of random linear chains.

    Attributes:
        emissions_bty: (B, T, Y) float32.
        lengths_b: (B,) steps of each.
        parameters: start_y, transitions_yy and end_y, float32.
    """

    emissions_bty: npt.NDArray[np.float32]
    lengths_b: npt.NDArray[np.int64]
    parameters: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def draw(cls, batch: int, steps: int, *, shortest: int | None = None) -> "TimedChain":
        """Random scores; the first sequence is full, the others have at least `shortest` steps."""
        rng = np.random.default_rng(0)
        tags = len(TAGS)
        emissions = rng.standard_normal((batch, steps, tags)).astype(np.float32)
        lengths = rng.integers(steps if shortest is None else shortest, steps + 1, batch)
        lengths[0] = steps
        return cls(
            emissions_bty=emissions,
            lengths_b=lengths,
            parameters={
                "start_y": rng.standard_normal(tags).astype(np.float32),
                "transitions_yy": rng.standard_normal((tags, tags)).astype(np.float32),
                "end_y": rng.standard_normal(tags).astype(np.float32),
            },
        )

    def checked(self) -> Chain:
        """As the host functions check it."""
        return check_chain(self.emissions_bty, self.lengths_b, **self.parameters, allowed_yy=None)

    def decode(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[Any]]:
        """NumPy's tags and scores."""
        parameters: dict[str, Any] = dict(self.parameters)
        return viterbi_decode(self.emissions_bty, self.lengths_b, **parameters)

    def confidence(self, path_bt: npt.NDArray[np.int32]) -> npt.NDArray[Any]:
        """NumPy's probability of each tag of a path (B, T), in float64; 0 past the end."""
        exact = {name: part.astype(np.float64) for name, part in self.parameters.items()}
        marginals = tag_marginals(self.emissions_bty.astype(np.float64), self.lengths_b, **exact)
        picked = np.take_along_axis(marginals, np.maximum(path_bt, 0)[:, :, None], 2)[:, :, 0]
        return np.where(path_bt >= 0, picked, 0.0)

    def pytorch_crf(self, device: str = "cpu") -> Callable[[], list[list[int]]]:
        """The baseline: decodes on a device, and brings the paths back as lists.

        Raises:
            BackendUnavailableError: pytorch-crf is not installed.
        """
        import torch

        try:
            from torchcrf import CRF
        except ImportError as error:
            raise BackendUnavailableError(
                "the baseline pytorch-crf is not installed; pip install pytorch-crf==0.7.2"
            ) from error
        crf = CRF(len(TAGS), batch_first=True)
        targets = (crf.start_transitions, crf.transitions, crf.end_transitions)
        with torch.no_grad():
            for parameter, values in zip(targets, self.parameters.values(), strict=True):
                parameter.copy_(torch.from_numpy(values))
        crf = crf.to(device)
        emissions = torch.from_numpy(np.asarray(self.emissions_bty)).to(device)
        steps = torch.arange(emissions.shape[1])
        mask = (steps < torch.from_numpy(self.lengths_b)[:, None]).to(device)

        def decode() -> list[list[int]]:
            with torch.no_grad():
                paths: list[list[int]] = crf.decode(emissions, mask)
            return paths

        return decode

    def describe(self, kernel: str) -> dict[str, Any]:
        """Its sizes, for a row."""
        batch, steps, tags = self.emissions_bty.shape
        return {"kernel": kernel, "batch": batch, "steps": steps, "tags": tags}


def chain_calls(batch: int, steps: int, *, ragged: bool) -> Calls:
    """pytorch-crf and our decoder on the same random chain, after checking that paths agree."""
    import torch

    torch.set_num_threads(1)
    chain = TimedChain.draw(batch, steps, shortest=steps // 2 if ragged else None)
    baseline = chain.pytorch_crf()
    tags, _ = chain.decode()
    for row, path in zip(tags, baseline(), strict=True):
        assert row[: len(path)].tolist() == path, "a path differs from pytorch-crf's"
    return {"pytorch-crf": baseline, "numpy": chain.decode}


def random_posts(posts: int, units: int) -> dict[str, Any]:
    """Posts whose words have 1 to 4 subwords, each with exactly `units` word-aligned units."""
    rng = np.random.default_rng(0)
    rows: list[tuple[int, int]] = []
    words = []
    for _ in range(posts):
        found: list[tuple[int, int]] = []
        edges = [0]
        while len(found) < units:
            edges.append(edges[-1] + int(rng.choice([1, 2, 3, 4], p=[0.6, 0.2, 0.1, 0.1])))
            end = len(edges) - 2
            found += [(s, end) for s in range(end + 1) if edges[-1] - edges[s] <= _MAX_SCALE]
        rows += found[:units]
        words.append(len(edges) - 1)
    table = np.array(rows, np.int32)
    logits = rng.standard_normal((len(rows), 5)).astype(np.float32)
    logits[:, 0] += 3  # about three entities a post
    return {
        "post_offsets": np.arange(posts + 1) * units,
        "start_u": table[:, 0].copy(),
        "end_u": table[:, 1].copy(),
        "unit_logits_uc": logits,
        "word_offsets": np.concatenate([[0], np.cumsum(words)]),
        "word_emissions_wy": rng.standard_normal((sum(words), len(TAGS))).astype(np.float32),
    }


def segment_calls(posts: int, units: int) -> tuple[Calls, int]:
    """Linear chain and segmental decoding over the same posts; also the longest post's words."""
    inputs = random_posts(posts, units)
    bounds, offsets = inputs["word_offsets"], inputs["post_offsets"]
    lengths = np.diff(bounds)
    emissions = np.zeros((posts, int(lengths.max()), len(TAGS)), np.float32)
    for b in range(posts):
        emissions[b, : lengths[b]] = inputs["word_emissions_wy"][bounds[b] : bounds[b + 1]]
    rng = np.random.default_rng(1)
    start, end = rng.standard_normal((2, len(TAGS))).astype(np.float32)
    moves = rng.standard_normal((len(TAGS), len(TAGS))).astype(np.float32)
    scores = inputs["unit_logits_uc"][:, 1:] - inputs["unit_logits_uc"][:, :1]
    build: Callable[[], Units] = partial(Units, offsets, inputs["start_u"], inputs["end_u"], scores)
    joint = partial(
        joint_scores,
        **inputs,
        bias=0.0,
        weight=0.25,
        tags=TAGS,
        labels=("PER", "LOC", "ORG", "OTHER"),
    )
    table = build()
    answer, _ = segmental_decode(table, lengths)
    return {
        "linear chain": partial(
            viterbi_decode,
            emissions,
            lengths,
            start_y=start,
            transitions_yy=moves,
            end_y=end,
        ),
        "segmental": partial(segmental_decode, table, lengths),
        "box re-decode": partial(box_redecode, table, lengths, radius=0.1, answer=answer),
        "building units": build,
        "joint scores": joint,
        "segmental, joint units": partial(segmental_decode, joint(), lengths),
    }, int(lengths.max())


def measure(clock: str, seconds: float) -> list[Row]:
    """Median microseconds of each call; `ratio` is the baseline's time over this one's."""
    plans: list[tuple[Row, Calls, str]] = []
    for kind in ("full", "ragged"):
        for batch, steps in SIZES:
            row = {"task": "linear chain", "batch": batch, "steps": steps, "lengths": kind}
            plans.append((row, chain_calls(batch, steps, ragged=kind == "ragged"), "pytorch-crf"))
    calls, words = segment_calls(256, 60)
    row = {"task": "256 posts of 60 units", "batch": 256, "steps": words, "lengths": "words"}
    plans.append((row, calls, "linear chain"))
    rows = []
    for row, calls, baseline in progress(plans, "decoders"):
        times = interleave(calls, CLOCKS[clock], seconds)
        medians = {name: median(values, 12) for name, values in times.items()}
        rows += [
            row
            | {"decoder": name, "runs": len(times[name]), "median_us": 1e6 * value}
            | {"baseline": baseline, "ratio": medians[baseline] / value}
            for name, value in medians.items()
        ]
    return rows


def format_rows(rows: list[Row]) -> str:
    """A Markdown table."""
    head = ("task", "B", "T", "lengths", "decoder", "runs", "median us", "times faster", "than")
    figures = ("task", "batch", "steps", "lengths", "decoder", "runs")
    lines = [
        [
            *(str(row[name]) for name in figures),
            *(f"{row['median_us']:.1f}", f"{row['ratio']:.2f}", row["baseline"]),
        ]
        for row in rows
    ]
    return Table(head=head, rows=lines, words=len(head)).markdown()


@click.command("decoders", cls=AmlrCommand)
@click.option(
    "--clock",
    type=click.Choice(sorted(CLOCKS)),
    default="wall",
    show_default=True,
    help="cpu: processor time of the thread, for machines that others use too.",
)
@click.option("--seconds", default=3.0, show_default=True, help="Time for each size.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False))
def main(clock: str, seconds: float, json_path: Path | None) -> None:
    """Time the decoders against pytorch-crf 0.7.2 (Y = 9) and against each other.

    Linear chains are full, or ragged: uniform in T/2..T.

    Example: python -m amlr.benchmarks.decoders --clock cpu --json decoders.json
    """
    rows = measure(clock, seconds)
    click.echo(format_rows(rows))
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
