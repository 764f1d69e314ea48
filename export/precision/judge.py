"""Judges half graphs on posts: the runtime's own text, batches and decoders, emulated graphs."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt
import onnx

from amlr.export.parity import Answer, Comparison, ask, compare, compare_leads, leads
from amlr.export.precision.emulate import RangeScan, emulate
from amlr.export.precision.graph_tools import Feed, Run, session_runner
from amlr.export.precision.half import HalfGraph
from amlr.export.radii import Pair
from amlr.kernels.arrays import Floats
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.results import Post

# A device adds in another order than the emulation does.
EMULATED = 2.0
GRAPHS = ("text", "image", "fusion")


class GraphProvider(ByGraphs):
    """Padded graphs in onnxruntime sessions that run them exactly as written.

    Attributes:
        name: Shown in results.
        precision: Of the graphs.
    """

    def __init__(self, run: Mapping[str, Run], bundle: Bundle, *, name: str) -> None:
        """Wrap callables by graph name: feeds to outputs by name."""
        super().__init__(bundle, bundle.manifest.variants["fp32"], packed=False)
        self.name, self.precision = name, "fp16"
        self._runs = run

    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        return self._runs[graph](feed)

    def encode_images(self, pixels_bchw: Floats) -> list[Floats]:
        """Regions (P, D) of each picture."""
        return list(self._run("image", {"pixel_values": pixels_bchw})["regions_bpd"])

    def close(self) -> None:
        """Nothing to release."""


def remembering(run: Run) -> Run:
    """Answer a feed that was seen before from memory; the same posts are judged many times."""
    known: dict[bytes, dict[str, npt.NDArray[Any]]] = {}

    def look_up(feeds: Feed) -> dict[str, npt.NDArray[Any]]:
        digest = hashlib.sha256()
        for name, array in sorted(feeds.items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
        key = digest.digest()
        if key not in known:
            known[key] = run(feeds)
        return known[key]

    return look_up


class PostJudge:
    """Half graphs against the answers of the eager model on fixed posts.

    Attributes:
        posts: The posts.
        answers: The eager model's.
    """

    def __init__(self, bundle: Bundle, eager: Engine, posts: Sequence[Post]) -> None:
        """Ask the eager model once."""
        self._bundle, self.posts = bundle, list(posts)
        self.answers: list[Answer] = ask(eager, self.posts)
        self._leads = leads(self.answers, bundle)
        # The last runner of each graph: a trial changes one graph and keeps the others.
        self._runners: dict[str, tuple[HalfGraph, Run]] = {}

    def __call__(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> Comparison:
        """Emulate the graphs over all posts, or some, and compare."""
        return self.compare(self.ask(graphs, only), only)

    def _runner(self, name: str, graph: HalfGraph) -> Run:
        known = self._runners.get(name)
        if known is None or known[0] is not graph:
            run = session_runner(emulate(graph.model))
            # What fusion reads changes with every trial.
            known = graph, run if name == "fusion" else remembering(run)
            self._runners[name] = known
        return known[1]

    def ask(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> list[Answer]:
        """Answers of emulated graphs to all posts, or some."""
        run = {name: self._runner(name, graph) for name, graph in graphs.items()}
        return self.ask_provider(GraphProvider(run, self._bundle, name="fp16-emulated"), only)

    def ask_provider(
        self, provider: GraphProvider, only: Sequence[int] | None = None
    ) -> list[Answer]:
        """Answers of a provider to all posts, or some."""
        chosen = range(len(self.posts)) if only is None else only
        with Engine(self._bundle, provider) as engine:
            return ask(engine, [self.posts[index] for index in chosen])

    def pair(self, low: Sequence[Answer]) -> Pair:
        """The eager model's answers, and those of a variant."""
        return Pair(posts=self.posts, exact=self.answers, low=low)

    def compare(self, answers: Sequence[Answer], only: Sequence[int] | None = None) -> Comparison:
        """Compare answers to all posts, or some, with the eager model's."""
        chosen = list(range(len(self.posts))) if only is None else list(only)
        result = compare([self.answers[index] for index in chosen], answers)
        lead = compare_leads(self._leads[chosen], leads(answers, self._bundle), result.changed)
        # Posts are counted among those of this judge, not among the chosen.
        return replace(
            result,
            changed=tuple(chosen[row] for row in result.changed),
            lead=replace(lead, nearest=tuple(chosen[row] for row in lead.nearest)),
        )


def scan_ranges(
    bundle: Bundle, models: Mapping[str, onnx.ModelProto], posts: Sequence[Post]
) -> dict[str, dict[str, float]]:
    """Largest magnitude of every node's output in the float32 graphs over the posts."""
    scans = {name: RangeScan(models[name]) for name in GRAPHS}
    run = {name: scan.run for name, scan in scans.items()}
    with Engine(bundle, GraphProvider(run, bundle, name="range-scan")) as engine:
        for _ in engine.pipeline.score_chunks(posts):
            pass
    return {name: scan.largest for name, scan in scans.items()}
