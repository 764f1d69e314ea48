"""Batches of text windows: order, split, and the arrays that the graphs take.

One `Batch` gives packed arrays (no padding; graphs `text_packed`, `fusion_packed`) and padded ones
(graphs `text`, `fusion`). Both score exactly the chosen units, and no result depends on which
windows share a batch.

Shape letters: B windows, T longest window, N steps of all windows, M units of all windows, K
largest scale, I windows with a picture, S most units of one window, P regions, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels.arrays import Floats, Ints
from amlr.runtime.text import TextWindow
from amlr.runtime.units import UnitTable, scale_major_index

RoundUp = Callable[[int], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSizes:
    """How much of a call a provider takes at once: what fills its hardware.

    Attributes:
        windows: Text windows.
        tokens: Steps, padding counted; a longer window is a batch of its own.
        pictures: Pictures.
    """

    windows: int
    tokens: int = 4096
    pictures: int = 8


# Measured on CPUs: eight packed windows already reach full speed; more only costs memory.
CPU_BATCHES = BatchSizes(windows=16)


def exact(size: int) -> int:
    """Sizes as they are."""
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Raw logits of one batch: units in the order of its tables, steps in window order.

    Attributes:
        unit_logits_mc: Shape (M, 1+C), float32.
        emissions_ny: Shape (N, Y), float32.
    """

    unit_logits_mc: Floats
    emissions_ny: Floats


def pool_images(images: Sequence[Any | None]) -> tuple[list[Any], Ints]:
    """Share equal pictures: windows whose features are the same object get one slot.

    Returns:
        Features of the distinct pictures; for each window its picture's place there, -1 for none.
    """
    slots: dict[int, int] = {}
    features: list[Any] = []
    slot_b = np.full(len(images), -1, np.int64)
    for row, image in enumerate(images):
        if image is None:
            continue
        if id(image) not in slots:
            slots[id(image)] = len(features)
            features.append(image)
        slot_b[row] = slots[id(image)]
    return features, slot_b


def split_batches(
    lengths: Sequence[int],
    *,
    max_windows: int = CPU_BATCHES.windows,
    max_tokens: int = CPU_BATCHES.tokens,
) -> list[list[int]]:
    """Group windows of similar length.

    Args:
        lengths: Steps of each window.
        max_windows: Most windows in a batch.
        max_tokens: Most steps in a batch, padding counted; a longer window gets its own batch.

    Returns:
        Indices of each batch; every window is in exactly one.

    Example:
        >>> split_batches([5, 90, 6, 80], max_windows=2)
        [[0, 2], [3, 1]]
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches: list[list[int]] = []
    # Even sizes: 17 windows are 9 + 8, not 16 + 1.
    size = -(-len(order) // max(1, -(-len(order) // max_windows)))
    for index in order:
        last = batches[-1] if batches else None
        # Ascending order: the next window is the longest so far.
        if last is None or len(last) >= size or (len(last) + 1) * lengths[index] > max_tokens:
            batches.append([index])
        else:
            last.append(index)
    return batches


class Batch:
    """Windows that go through the graphs together.

    Attributes:
        windows, units: As given.
        lengths_b: Steps of each window.
        unit_counts_b: Units of each window.
        step_offsets_b, unit_offsets_b: Where its steps and units begin, then the end, (B+1,).
        start_m, scale_m, window_m: First step within the window, steps, window of each unit.
    """

    def __init__(
        self,
        windows: Sequence[TextWindow],
        units: Sequence[UnitTable],
        *,
        scales: int,
        pad_id: int,
    ) -> None:
        """Collect windows and, for each, the units to score.

        Args:
            windows: At least one.
            units: One table a window, with steps counted within it.
            scales: K.
            pad_id: Token id that fills padded rows.
        """
        assert len(windows) == len(units) > 0
        self.windows, self.units = tuple(windows), tuple(units)
        self.scales, self.pad_id = scales, pad_id
        lengths = [len(w.input_ids_t) for w in windows]
        counts = [len(u.scale_u) for u in units]
        self.lengths_b = np.array(lengths, np.int64)
        self.step_offsets_b = np.array([0, *accumulate(lengths)], np.int64)
        self.unit_counts_b = np.array(counts, np.int64)
        self.unit_offsets_b = np.array([0, *accumulate(counts)], np.int64)
        self.scale_m = np.concatenate([u.scale_u for u in units], dtype=np.int64)
        self.start_m = np.concatenate([u.start_step_u for u in units], dtype=np.int64)
        self.window_m = np.arange(len(units)).repeat(counts)
        self._scale_counts: list[int] = np.bincount(self.scale_m, minlength=scales + 1)[1:].tolist()
        # Stable: units of one scale keep their order.
        self._by_scale = np.argsort(self.scale_m, kind="stable")
        self._places: dict[RoundUp, tuple[Ints, int]] = {}

    def __len__(self) -> int:
        return len(self.windows)

    def split(self, scores: Scores) -> list[Scores]:
        """Scores of each window."""
        steps, units = self.step_offsets_b.tolist(), self.unit_offsets_b.tolist()
        return [
            Scores(
                unit_logits_mc=scores.unit_logits_mc[first_unit:end_unit],
                emissions_ny=scores.emissions_ny[first_step:end_step],
            )
            for (first_step, end_step), (first_unit, end_unit) in zip(
                pairwise(steps), pairwise(units), strict=True
            )
        ]

    # Text graphs -----------------------------------------------------------------------------

    def padded_text(self, *, min_steps: int = 1, shapes: bool = False) -> dict[str, Ints]:
        """Inputs of graph `text`: ids, mask and shapes, each (B, T)."""
        steps = max(int(self.lengths_b.max()), min_steps)
        mask = (np.arange(steps) < self.lengths_b[:, None]).astype(np.int64)
        ids = np.full((len(self), steps), self.pad_id, np.int64)
        ids[mask == 1] = self._packed_ids()
        feed = {"input_ids": ids, "attention_mask": mask}
        if shapes:
            feed["shape_ids"] = np.zeros_like(ids)
            feed["shape_ids"][mask == 1] = self._packed_shapes()
        return feed

    def packed_text(self, *, shapes: bool = False, round_up: RoundUp = exact) -> dict[str, Ints]:
        """Inputs of graph `text_packed`: N steps one after another and where they sit in (B, T).

        Args:
            shapes: Whether the graph takes word shapes.
            round_up: Gives N and T from what they must at least be; dummy steps come last, and
                nothing real looks at them.
        """
        position = np.arange(round_up(int(self.lengths_b.max())))
        mask = position < self.lengths_b[:, None]
        place = mask.ravel().nonzero()[0]
        feed = {
            "input_ids": self._packed_ids(),
            "position_ids": place % len(position),
            "unpad_index": place,
        }
        if shapes:
            feed["shape_ids"] = self._packed_shapes()
        rows = round_up(len(feed["input_ids"]))
        feed = {name: _lengthened(column, rows) for name, column in feed.items()}
        feed["attention_mask"] = mask.astype(np.int64)
        feed["pad_index"] = (self.step_offsets_b[:-1, None] + position) * feed["attention_mask"]
        return feed

    def _packed_ids(self) -> Ints:
        return np.concatenate([w.input_ids_t for w in self.windows])

    def _packed_shapes(self) -> Ints:
        return np.concatenate([w.shape_ids_t for w in self.windows])

    # Fusion graphs ---------------------------------------------------------------------------

    def padded_fusion(
        self, hidden_btd: Floats, pool_npd: Floats, slot_b: Ints
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of graph `fusion`; hidden states must have at least K steps."""
        return {
            "hidden_btd": hidden_btd,
            "unit_index_bs": unit_table(self, hidden_btd.shape[1]),
            "pool_npd": pool_npd,
            "slot_b": slot_b,
        }

    def from_padded(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Scores:
        """Scores out of graph `fusion`'s padded outputs."""
        logits, emissions = outputs["unit_logits_bsc"], outputs["emissions_bty"]
        counts = self.unit_counts_b
        return Scores(
            unit_logits_mc=logits[np.arange(logits.shape[1]) < counts[:, None]],
            emissions_ny=emissions[np.arange(emissions.shape[1]) < self.lengths_b[:, None]],
        )

    def packed_fusion(
        self,
        hidden_nd: Floats,
        pool_npd: Floats,
        slot_b: Ints,
        *,
        round_up: RoundUp = exact,
        allow_empty: bool = False,
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of graph `fusion_packed`.

        Args:
            hidden_nd: Hidden states of the N steps, one after another; more rows are not read.
            pool_npd: Regions of the pictures; any one row where there is no picture.
            slot_b: Picture of each window, -1 for none.
            round_up: Gives the units per scale, R and S from what they must at least be.
            allow_empty: Leave R and I at 0 where no window has a picture, for engines that take
                empty inputs: a dummy would read all weights of the attention for nothing.
        """
        feed = self.closed_fusion(hidden_nd, round_up=round_up)
        place_m, count = self._graph_places(round_up)
        feed |= _attended(place_m, count, self.window_m, self.unit_counts_b, slot_b, round_up)
        if allow_empty and not (slot_b >= 0).any():
            feed |= _nothing_attended(count)
        return feed | {"pool_npd": pool_npd}

    def closed_fusion(
        self, hidden_nd: Floats, *, round_up: RoundUp = exact
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of graph `fusion_closed`: those of `fusion_packed` that are not about pictures."""
        first_row_m = (self.step_offsets_b[self.window_m] + self.start_m)[self._by_scale]
        feed: dict[str, npt.NDArray[Any]] = {"hidden_nd": hidden_nd}
        steps = np.arange(self.scales)
        last, stop = hidden_nd.shape[0] - 1, 0
        for scale, count in enumerate(self._scale_counts, start=1):
            rows, stop = first_row_m[stop : stop + count], stop + count
            # The graph wants no empty input: a scale without units scores one that nobody reads.
            size = round_up(max(1, count))
            rows = _lengthened(rows, size)[:, None] + steps[:scale]
            # Only a dummy may look past the end.
            feed[f"rows_{scale}"] = rows if size == count else np.minimum(rows, last)
        return feed

    def attention(
        self, hidden_nd: Floats, pool_npd: Floats, slot_b: Ints
    ) -> dict[str, npt.NDArray[Any]]:
        """Inputs of graph `attention`; every window has a picture and at least one unit."""
        feed = self.packed_fusion(hidden_nd, pool_npd, slot_b)
        return {n: a for n, a in feed.items() if n not in ("attend_unpad_r", "context_index_m")}

    def from_packed(
        self, outputs: Mapping[str, npt.NDArray[Any]], *, round_up: RoundUp = exact
    ) -> Scores:
        """Scores out of graph `fusion_packed`, given the `round_up` of its inputs."""
        place_m, _ = self._graph_places(round_up)
        return Scores(
            unit_logits_mc=outputs["unit_logits_mc"][place_m],
            emissions_ny=outputs["emissions_ny"][: self.step_offsets_b[-1]],
        )

    def _graph_places(self, round_up: RoundUp) -> tuple[Ints, int]:
        """Where each unit sits in the graph's scale-major order, dummies counted; their number."""
        found = self._places.get(round_up)
        if found is None:
            counts = np.array(self._scale_counts)
            sizes = np.array([round_up(max(1, count)) for count in self._scale_counts])
            ends = sizes.cumsum()
            place = np.empty(len(self.scale_m), np.int64)
            # Dummies of the scales before push a unit back.
            shift = ends - sizes - (counts.cumsum() - counts)
            place[self._by_scale] = np.arange(len(place)) + shift.repeat(counts)
            found = self._places[round_up] = place, int(ends[-1])
        return found


def unit_table(batch: Batch, steps: int) -> Ints:
    """Index of each window's units among the scale-major units of `steps` steps, (B, S), 0 else."""
    counts = batch.unit_counts_b
    table = np.zeros((len(batch), max(1, int(counts.max()))), np.int64)
    table[np.arange(table.shape[1]) < counts[:, None]] = scale_major_index(
        batch.start_m, batch.scale_m, steps
    )
    return table


def _lengthened(column: Ints, size: int) -> Ints:
    """Zeros after the end of a column."""
    if len(column) == size:
        return column
    longer = np.zeros(size, np.int64)
    longer[: len(column)] = column
    return longer


def _nothing_attended(count: int) -> dict[str, Ints]:
    nothing = np.zeros(0, np.int64)
    return {
        "attend_rows_r": nothing,
        "attend_pad_is": nothing.reshape(0, 1),
        "attend_unpad_r": nothing,
        "slot_i": nothing,
        "context_index_m": np.zeros(count, np.int64),
    }


def _attended(
    place_m: Ints,
    count: int,
    window_m: Ints,
    counts_b: Ints,
    slot_b: Ints,
    round_up: RoundUp,
) -> dict[str, Ints]:
    """Which units look at a picture, padded by window, and where each unit finds its result."""
    seen_b = np.flatnonzero((slot_b >= 0) & (counts_b > 0))
    if not len(seen_b):
        zero = np.zeros(1, np.int64)
        return {
            "attend_rows_r": zero,
            "attend_pad_is": zero[:, None],
            "attend_unpad_r": zero,
            "slot_i": zero,
            "context_index_m": np.ones(count, np.int64),
        }
    is_seen_m = (slot_b >= 0)[window_m]
    rows = place_m[is_seen_m]
    sizes = counts_b[seen_b]
    mask = np.arange(round_up(int(sizes.max()))) < sizes[:, None]
    pad = np.zeros(mask.shape, np.int64)
    pad[mask] = np.arange(len(rows))
    # R counts dummies too; the constant of "no picture" comes after all of them.
    attended = round_up(len(rows))
    context = np.full(count, attended, np.int64)
    context[rows] = np.arange(len(rows))
    return {
        "attend_rows_r": _lengthened(rows, attended),
        "attend_pad_is": pad,
        "attend_unpad_r": _lengthened(np.flatnonzero(mask), attended),
        "slot_i": slot_b[seen_b],
        "context_index_m": context,
    }
