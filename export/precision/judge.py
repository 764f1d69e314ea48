"""Judges half graphs on posts: the runtime's own text, batches and decoders, emulated graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from amlr.export.parity import changed_entities, raw_errors
from amlr.export.precision.emulate import RangeScan, emulate, open_session
from amlr.export.precision.half import HalfGraph
from amlr.export.precision.islands import Evaluation
from amlr.runtime.batching import Batch, Scores, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post, Raw, Result

Floats = npt.NDArray[np.float32]
GRAPHS = ("text", "image", "fusion")


class GraphProvider:
    """Padded graphs in onnxruntime sessions that run them exactly as written.

    Attributes:
        name: Shown in results.
        precision: Of the graphs.
    """

    def __init__(self, run: Mapping[str, Any], bundle: Bundle, *, name: str) -> None:
        """Wrap callables by graph name: feeds to outputs by name."""
        self.name, self.precision = name, "fp16"
        self._run, self._bundle = run, bundle

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """Regions (P, D) of each picture."""
        return list(self._run["image"]({"pixel_values": pixels_bchw})["regions_bpd"])

    def score(self, batch: Batch, images: Sequence[Floats | None]) -> Scores:
        """Raw logits through the padded graphs."""
        manifest = self._bundle.manifest
        pool = pool_images(images)
        nothing = np.zeros((1, manifest.regions, manifest.width), np.float32)
        regions = np.stack(pool.features) if pool.features else nothing
        feed = batch.padded_text(min_steps=manifest.scales, shapes=manifest.shape_embedding)
        hidden = self._run["text"](feed)["hidden_btd"]
        return batch.from_padded(
            self._run["fusion"](batch.padded_fusion(hidden, regions, pool.slot_b))
        )

    def close(self) -> None:
        """Nothing to release."""


def session_runner(model: onnx.ModelProto, threads: int = 1) -> Any:
    """A callable from feeds to outputs by name."""
    session = open_session(model, threads)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run


class PostJudge:
    """Half graphs against the answers of the eager model on fixed posts.

    Attributes:
        raws: The eager model's raw outputs.
        results: Its entities.
    """

    def __init__(
        self, bundle: Bundle, eager: Engine, posts: Sequence[Post], *, threads: int = 1
    ) -> None:
        """Ask the eager model once."""
        self._bundle, self._posts, self._threads = bundle, list(posts), threads
        self.raws: list[Raw] = eager.raw(self._posts)
        self.results: list[Result] = eager.tag_batch(self._posts)

    def __call__(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> Evaluation:
        """Emulate the graphs over all posts, or some."""
        run = {
            name: session_runner(emulate(graph.model), self._threads)
            for name, graph in graphs.items()
        }
        return self.evaluate(GraphProvider(run, self._bundle, name="fp16-emulated"), only)

    def witness(self, graphs: Mapping[str, HalfGraph]) -> Evaluation:
        """The same posts with onnxruntime's own idea of half arithmetic."""
        run = {name: session_runner(graph.model, self._threads) for name, graph in graphs.items()}
        return self.evaluate(GraphProvider(run, self._bundle, name="fp16-onnxruntime"), None)

    def evaluate(self, provider: GraphProvider, only: Sequence[int] | None) -> Evaluation:
        """Compare a provider with the eager model."""
        chosen = list(range(len(self._posts))) if only is None else list(only)
        posts = [self._posts[i] for i in chosen]
        changed: list[int] = []
        entities = different = 0
        worst: dict[str, float] = {}
        with Engine(self._bundle, provider) as engine:
            # Overflow shows as NaN, which the engine refuses post by post; that is a change too.
            results = engine.tag_batch(posts)
            for index, result in zip(chosen, results, strict=True):
                expected = self.results[index]
                entities += len(expected.entities)
                if result.error is not None and expected.error is None:
                    count = max(1, len(expected.entities))
                    worst = {name: float("inf") for name in ("unit_logits", "emissions")}
                else:
                    count = changed_entities(expected, result)
                different += count
                if count:
                    changed.append(index)
            if not any(result.error for result in results):
                for index, raw in zip(chosen, engine.raw(posts), strict=True):
                    for name, error in raw_errors(self.raws[index], raw).items():
                        worst[name] = max(worst.get(name, 0.0), error)
        return Evaluation(
            posts=len(posts),
            entities=entities,
            changed=tuple(changed),
            changed_entities=different,
            max_abs_error=worst,
        )


def scan_ranges(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], posts: Sequence[Post]
) -> dict[str, dict[str, float]]:
    """Largest magnitude of every node's output in the float32 graphs over the posts."""
    scans = {name: RangeScan(models[name]) for name in GRAPHS}
    run = {name: scan.run for name, scan in scans.items()}
    with Engine(bundle, GraphProvider(run, bundle, name="range-scan")) as engine:
        engine.tag_batch(posts)
    return {name: scan.largest for name, scan in scans.items()}
