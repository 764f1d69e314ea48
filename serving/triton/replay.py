"""Providers for an engine that is split in two, with the graphs run by somebody else in between.

`Recorder` takes the place of the graphs before they run and keeps what would go in; `Replay` takes
it afterwards and gives what came out. Both see the same calls in the same order, because batches
depend on nothing but the texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.runtime.batching import CPU_BATCHES, Batch, Scores, pool_images
from amlr.runtime.manifest import Manifest
from amlr.runtime.text import TextWindow
from amlr.runtime.units import UnitTable

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
_NOTHING = np.zeros(0, np.int32)
_NO_UNITS = UnitTable(
    start_word_u=_NOTHING, end_word_u=_NOTHING, start_step_u=_NOTHING, scale_u=_NOTHING
)


class Recorder:
    """Keeps windows, units and pictures in the order of the calls."""

    name = "triton-ensemble"
    batch_sizes = CPU_BATCHES

    def __init__(self, manifest: Manifest, precision: str) -> None:
        self.precision = precision
        self._manifest = manifest
        self._windows: list[TextWindow] = []
        self._units: list[UnitTable] = []
        self._pictures: list[Floats | None] = []

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """The pictures themselves: they are encoded later."""
        return list(pixels_bchw)

    def score(self, batch: Batch, images: Sequence[Floats | None]) -> Scores:
        """Keep the batch; the scores mean nothing."""
        self._windows.extend(batch.windows)
        self._units.extend(batch.units)
        self._pictures.extend(images)
        return Scores(
            unit_logits_mc=np.zeros(
                (batch.unit_offsets_b[-1], len(self._manifest.classes)), np.float32
            ),
            emissions_ny=np.zeros((batch.step_offsets_b[-1], len(self._manifest.tags)), np.float32),
        )

    def close(self) -> None:
        """Nothing to release."""

    def take(self, *, min_steps: int) -> Arrays:
        """Inputs of the three graphs for everything since the last call.

        Graphs want no empty input: a window that nobody reads stands in where no post has words,
        and a black picture where no post has one.
        """
        manifest = self._manifest
        windows, units = self._windows or [_no_words(manifest)], self._units or [_NO_UNITS]
        pool = pool_images(self._pictures or [None])
        self._windows, self._units, self._pictures = [], [], []
        ids = manifest.token_ids
        batch = Batch(windows, units, scales=manifest.scales, pad_id=ids.pad_id)
        feed: Arrays = dict(
            batch.padded_text(
                min_steps=max(min_steps, manifest.scales), shapes=manifest.shape_embedding
            )
        )
        # Only the number of steps matters here; hidden states and regions are made later.
        nothing = np.zeros((1, feed["input_ids"].shape[1], 0), np.float32)
        feed["unit_index_bs"] = batch.padded_fusion(nothing, nothing, pool.slot_b)["unit_index_bs"]
        size = manifest.image.size
        feed["pixel_values"] = (
            np.stack(pool.features) if pool.features else np.zeros((1, 3, size, size), np.float32)
        )
        return feed | {"slot_b": pool.slot_b}


def _no_words(manifest: Manifest) -> TextWindow:
    ids, nobody = manifest.token_ids, np.zeros(0, np.int32)
    return TextWindow(
        input_ids_t=np.array([ids.cls_id, ids.sep_id], np.int64),
        token_offsets_t2=np.zeros((2, 2), np.int32),
        shape_ids_t=np.zeros(2, np.int64),
        first_n=nobody,
        last_n=nobody,
        word_start=0,
    )


class Replay:
    """Hands out, call by call, the scores that the graphs gave."""

    name = "triton-ensemble"
    batch_sizes = CPU_BATCHES

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._outputs: Arrays = {}
        self._row = 0

    def set(self, outputs: Arrays) -> None:
        """Begin with the outputs of graph `fusion` for another request."""
        self._outputs, self._row = outputs, 0

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """Never called: pictures are behind us."""
        raise AssertionError("pictures were encoded by the image model")

    def score(self, batch: Batch, images: Sequence[Floats | None]) -> Scores:
        """The next rows."""
        rows = slice(self._row, self._row + len(batch))
        self._row = rows.stop
        return batch.from_padded({name: array[rows] for name, array in self._outputs.items()})

    def close(self) -> None:
        """Nothing to release."""
