"""Judges half graphs on posts: the runtime's own text, batches and decoders, emulated graphs."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from amlr.export.parity import OUTPUTS, Key, count_changes, entity_keys, unit_gains
from amlr.export.precision.emulate import RangeScan, emulate, open_session
from amlr.export.precision.half import HalfGraph
from amlr.export.precision.islands import Evaluation
from amlr.export.precision.margins import compare_leads, leads
from amlr.runtime.batching import CPU_BATCHES, Batch, Scores, pool_images
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post
from amlr.runtime.windows import PostScores

Floats = npt.NDArray[np.float32]
Feed = Mapping[str, npt.NDArray[Any]]
Run = Callable[[Feed], dict[str, npt.NDArray[Any]]]
GRAPHS = ("text", "image", "fusion")


class GraphProvider:
    """Padded graphs in onnxruntime sessions that run them exactly as written.

    Attributes:
        name: Shown in results.
        precision: Of the graphs.
    """

    def __init__(self, run: Mapping[str, Run], bundle: Bundle, *, name: str) -> None:
        """Wrap callables by graph name: feeds to outputs by name."""
        self.name, self.precision, self.batch_sizes = name, "fp16", CPU_BATCHES
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


def session_runner(model: onnx.ModelProto, threads: int = 1) -> Run:
    """A callable from feeds to outputs by name."""
    session = open_session(model, threads)
    names = [output.name for output in session.get_outputs()]

    def run(feeds: Feed) -> dict[str, npt.NDArray[Any]]:
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What an engine says about one post.

    Attributes:
        scores: Raw scores; None for a post without words, and for one that failed.
        entities: Offsets and label of each.
        failed: Why it could not be scored, NaN or infinite scores for example.
    """

    scores: PostScores | None
    entities: frozenset[Key]
    failed: str


def ask(engine: Engine, posts: Sequence[Post]) -> list[Answer]:
    """Scores and entities of posts in one pass."""
    scored = list(engine.pipeline.score(posts))
    decoded = iter(
        Decoder.of(engine.bundle).entities(
            [post.scores for post in scored if post.scores is not None]
        )
    )
    return [
        Answer(
            scores=post.scores,
            entities=frozenset() if post.scores is None else entity_keys(next(decoded)),
            failed="" if post.error is None else str(post.error),
        )
        for post in scored
    ]


def answer_errors(expected: Answer, actual: Answer) -> dict[str, float]:
    """Largest difference of each raw output of one post; infinite where only one side has any."""
    if expected.scores is None and actual.scores is None:
        return dict.fromkeys(OUTPUTS, 0.0)
    if expected.scores is None or actual.scores is None:
        return dict.fromkeys(OUTPUTS, float("inf"))
    a, b = expected.scores, actual.scores
    pairs = ((a.unit_logits_uc, b.unit_logits_uc), (a.emissions_ty, b.emissions_ty))
    return {
        name: float(np.abs(x - y).max(initial=0.0))
        for name, (x, y) in zip(OUTPUTS, pairs, strict=True)
    }


def _differences(expected: PostScores, actual: PostScores) -> Floats:
    """Differences of what decides: class less none of each unit, and the emissions of words."""
    both = [
        np.concatenate([unit_gains(s).ravel(), s.word_emissions_ny.ravel()])
        for s in (expected, actual)
    ]
    difference: Floats = both[0] - both[1]
    return difference


class PostJudge:
    """Half graphs against the answers of the eager model on fixed posts.

    Attributes:
        answers: The eager model's.
    """

    def __init__(
        self, bundle: Bundle, eager: Engine, posts: Sequence[Post], *, threads: int = 1
    ) -> None:
        """Ask the eager model once."""
        self._bundle, self._posts, self._threads = bundle, list(posts), threads
        self.answers: list[Answer] = ask(eager, self._posts)
        self._leads = leads([answer.scores for answer in self.answers], bundle)
        # The last runner of each graph: a trial changes one graph and keeps the others.
        self._runners: dict[str, tuple[HalfGraph, Run]] = {}

    def __call__(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> Evaluation:
        """Emulate the graphs over all posts, or some."""
        run = {name: self._runner(name, graph) for name, graph in graphs.items()}
        return self.evaluate(GraphProvider(run, self._bundle, name="fp16-emulated"), only)

    def witness(self, graphs: Mapping[str, HalfGraph]) -> Evaluation:
        """The same posts with onnxruntime's own idea of half arithmetic."""
        run = {name: session_runner(graph.model, self._threads) for name, graph in graphs.items()}
        return self.evaluate(GraphProvider(run, self._bundle, name="fp16-onnxruntime"), None)

    def _runner(self, name: str, graph: HalfGraph) -> Run:
        known = self._runners.get(name)
        if known is None or known[0] is not graph:
            run = session_runner(emulate(graph.model), self._threads)
            # What fusion reads changes with every trial.
            known = graph, run if name == "fusion" else remembering(run)
            self._runners[name] = known
        return known[1]

    def evaluate(self, provider: GraphProvider, only: Sequence[int] | None) -> Evaluation:
        """Compare a provider with the eager model."""
        chosen = list(range(len(self._posts))) if only is None else list(only)
        changed: list[int] = []
        entities = different = 0
        worst = dict.fromkeys(OUTPUTS, 0.0)
        squares = count_scores = 0.0
        with Engine(self._bundle, provider) as engine:
            answers = ask(engine, [self._posts[index] for index in chosen])
        for index, answer in zip(chosen, answers, strict=True):
            expected = self.answers[index]
            entities += len(expected.entities)
            # Overflow shows as NaN, which the engine refuses post by post: a change too.
            count = count_changes(expected.entities, answer.entities)
            if answer.failed and not expected.failed:
                count = max(1, count)
            different += count
            if count:
                changed.append(index)
            for name, error in answer_errors(expected, answer).items():
                worst[name] = max(worst[name], error)
            if expected.scores is not None and answer.scores is not None:
                moved = _differences(expected.scores, answer.scores)
                squares += float(np.square(moved, dtype=np.float64).sum())
                count_scores += moved.size
        lead = compare_leads(
            self._leads[chosen],
            leads([answer.scores for answer in answers], self._bundle),
            [self.answers[index].entities for index in chosen],
            [answer.entities for answer in answers],
        )
        return Evaluation(
            posts=len(chosen),
            entities=entities,
            changed=tuple(changed),
            changed_entities=different,
            max_abs_error=worst,
            lead=replace(lead, nearest=tuple(chosen[place] for place in lead.nearest)),
            score_error=float(np.sqrt(squares / max(1.0, count_scores))),
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
