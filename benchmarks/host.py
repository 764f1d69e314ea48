"""What the host costs beside the engine: processor time of a call whose engine answers at once.

A stand-in takes the engine's place. It builds the feeds of the real graphs and returns prepared
scores of the right shapes, so what is left is reading texts and pictures, batching, decoding and
results. Every round starts with empty caches and reads distinct posts: first with nothing known
(cold), then others (warm), then those again (repeated).
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.data import BenchPost, photo
from amlr.benchmarks.report.records import CacheState, HostRow
from amlr.errors import BackendUnavailableError
from amlr.export.samples import sample_posts
from amlr.runtime import pipeline, scoring
from amlr.runtime.bundle import Bundle
from amlr.runtime.chunks import ChunkReader
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import ImageFeatures
from amlr.runtime.providers.by_graphs import ByGraphs
from amlr.runtime.radii import Radii
from amlr.runtime.results import Post
from amlr.runtime.text import TextEncoder
from amlr.runtime.words import WordSplitter

Floats = npt.NDArray[np.float32]
CALLS = (1, 8, 32, 128)
TEXT, KNOWN, NEW = "text", "known picture", "new picture"
COLD: CacheState = "cold"
WARM: CacheState = "warm"
REPEATED: CacheState = "repeated"
# Where a stage begins. What no other stage takes of a call is results.
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("words", WordSplitter, "split"),
    ("tokens", ChunkReader, "_tokenize"),
    ("assembly", TextEncoder, "encode_prepared"),
    ("pictures", pipeline.Pipeline, "encode_images"),
    ("batch", pipeline, scoring.score_texts.__name__),
    ("decode", Decoder, "entities"),
    ("results", Engine, "tag_batch"),
)
CERTIFICATE = "certificate"
_ROUNDS, _QUICK_ROUNDS = 3, 1
# Posts of each of the two parts of a round, and pictures.
_POSTS, _PICTURES = 256, 128
# Any will do that hold for every post: the time hardly depends on them.
_RADII = Radii(units=1e-3, tokens=1e-3, posts=1, steps=1_000_000, blocks=frozenset(range(0x1100)))


class StandIn(ByGraphs):
    """Answers at once: a real provider's feeds, prepared scores.

    About one word in twenty-five begins an entity, as in posts.
    """

    name = "stand-in"

    def __init__(self, bundle: Bundle, variant: Variant) -> None:
        """Prepare scores.

        Raises:
            BackendUnavailableError: The variant has no packed graphs, whose feeds it builds.
        """
        super().__init__(bundle, variant)
        if not self._packed or "text_packed" not in variant.graphs:
            raise BackendUnavailableError(
                "the host's cost is measured with packed graphs; export the bundle again"
            )
        manifest = bundle.manifest
        steps = 128 * manifest.text.max_tokens
        self._hidden_nd = np.zeros((steps, manifest.width), np.float32)
        tags, classes = manifest.tags, len(manifest.classes)
        begins = [place for place, tag in enumerate(tags) if tag.startswith("B-")]
        self._emissions = _draw(steps, len(tags), tags.index("O"), begins, 0.04)
        # A linear chain reads entities from the emissions alone.
        share = 0.01 if manifest.decoder.kind == "segmental" else 0.0
        units = manifest.scales * steps
        self._logits = _draw(units, classes, 0, range(1, classes), share)

    def _run(self, graph: str, feed: dict[str, Any]) -> dict[str, Floats]:
        if graph == "text_packed":
            return {"hidden_nd": self._hidden_nd[: len(feed["input_ids"])]}
        units = sum(len(rows) for name, rows in feed.items() if name.startswith("rows_"))
        return {
            "unit_logits_mc": self._logits[:units],
            "emissions_ny": self._emissions[: len(feed["hidden_nd"])],
        }

    def encode_images(self, pixels_bchw: npt.NDArray[np.float32]) -> list[ImageFeatures]:
        """Regions of each picture."""
        return [np.zeros(self._no_image.shape[1:], np.float32) for _ in pixels_bchw]

    def close(self) -> None:
        """Nothing to release."""


def _draw(rows: int, columns: int, none: int, entities: Sequence[int], share: float) -> Floats:
    """Random scores in which the column `none` wins, but in a share of the rows an entity's."""
    rng = np.random.default_rng(columns)
    scores = rng.standard_normal((rows, columns), np.float32)
    scores[:, none] += 4
    chosen = np.flatnonzero(rng.random(rows) < share)
    scores[chosen, rng.choice(entities, len(chosen))] += 12
    return scores


class StageClock:
    """Processor time of stages; an inner stage's time does not count for the outer one."""

    def __init__(self) -> None:
        self.ns: defaultdict[str, int] = defaultdict(int)
        self._inner: list[int] = []

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time counts for a stage."""

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            self._inner.append(0)
            begin = time.process_time_ns()
            try:
                return function(*args, **options)
            finally:
                spent = time.process_time_ns() - begin
                self.ns[stage] += spent - self._inner.pop()
                if self._inner:
                    self._inner[-1] += spent

        return run

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Time all stages meanwhile."""
        originals = [(owner, name, getattr(owner, name)) for _, owner, name in STAGES]
        for stage, owner, name in STAGES:
            setattr(owner, name, self.timed(stage, getattr(owner, name)))
        try:
            yield
        finally:
            for owner, name, function in originals:
                setattr(owner, name, function)


def measure_host(path: Path, posts: Sequence[BenchPost], *, quick: bool = False) -> list[HostRow]:
    """Rows of each kind of post, state of the caches and number of posts a call.

    Raises:
        BackendUnavailableError: The bundle has no packed graphs.
    """
    texts = _distinct(posts, 2 * _POSTS)
    rows: list[HostRow] = []
    clock = StageClock()
    with TemporaryDirectory() as folder, clock.installed():
        pictures = _pictures(posts, Path(folder))
        for kind in (TEXT, KNOWN, NEW):
            made = [
                Post(text, None if kind == TEXT else pictures[i % _PICTURES])
                for i, text in enumerate(texts)
            ]
            for size in CALLS:
                rounds = [
                    _round(path, clock, kind, made, size)
                    for _ in range(_QUICK_ROUNDS if quick else _ROUNDS)
                ]
                rows += [_row(kind, state, size, [r[state] for r in rounds]) for state in rounds[0]]
    return rows


def _round(
    path: Path, clock: StageClock, kind: str, posts: Sequence[Post], size: int
) -> dict[CacheState, dict[str, float]]:
    """Microseconds a post of each stage, by state of the caches."""
    bundle = Bundle.open(path)
    variant = bundle.manifest.variants["fp32"]
    first, second = posts[:_POSTS], posts[_POSTS:]
    parts: dict[CacheState, Sequence[Post]] = {COLD: first, WARM: second, REPEATED: second}
    if kind == NEW:
        # Decoding a picture takes so long that the state of the text's cache does not show.
        parts = {WARM: second[:_PICTURES]}
    times: dict[CacheState, dict[str, float]] = {}
    with Engine(bundle, StandIn(bundle, variant), variant=variant) as engine:
        if kind == KNOWN:
            engine.pipeline.encode_images([post.image for post in posts])
        for state, part in parts.items():
            clock.ns.clear()
            for start in range(0, len(part), size):
                engine.tag_batch(part[start : start + size])
            if state == REPEATED:
                _certify(clock, engine, part, size)
            times[state] = {stage: ns / 1000 / len(part) for stage, ns in clock.ns.items()}
    return times


def _certify(clock: StageClock, engine: Engine, posts: Sequence[Post], size: int) -> None:
    """Time certificates alone, whatever the bundle is served with."""
    before = dict(clock.ns)
    decoder = Decoder.of(engine.bundle)
    certify = clock.timed(CERTIFICATE, decoder.certify)
    for start in range(0, len(posts), size):
        scored = engine.pipeline.score(posts[start : start + size])
        scores = [each.scores for each in scored if each.scores is not None]
        certify(scores, [_RADII] * len(scores))
    clock.ns.update(before)


def _row(kind: str, state: CacheState, size: int, rounds: Sequence[dict[str, float]]) -> HostRow:
    names = list(dict.fromkeys(name for each in rounds for name in each))
    stages = {name: median(each.get(name, 0.0) for each in rounds) for name in names}
    certificate = stages.pop(CERTIFICATE, None)
    order = [stage for stage, _, _ in STAGES if stage in stages]
    return HostRow(
        kind=kind,
        state=state,
        batch=size,
        us_per_post=round(sum(stages.values()), 1),
        stages_us={stage: round(stages[stage], 1) for stage in order},
        certificate_us=None if certificate is None else round(certificate, 1),
    )


def _distinct(posts: Sequence[BenchPost], count: int) -> list[str]:
    """Different texts, spread evenly through the posts."""
    texts = list(dict.fromkeys(item.post.text for item in posts))
    texts = texts[:: max(1, len(texts) // count)][:count]
    if len(texts) < count:
        more = [post.text for post in sample_posts(2 * count, images=0, seed=11)]
        texts = list(dict.fromkeys([*texts, *more]))[:count]
    return [texts[i % len(texts)] for i in range(count)]


def _pictures(posts: Sequence[BenchPost], folder: Path) -> list[Path]:
    """Different picture files; too few are filled up with drawn ones."""
    paths = dict.fromkeys(p.post.image for p in posts if isinstance(p.post.image, Path))
    chosen = list(paths)[:_PICTURES]
    for number in range(len(chosen), _PICTURES):
        path = folder / f"{number}.jpg"
        path.write_bytes(photo(number))
        chosen.append(path)
    return chosen
