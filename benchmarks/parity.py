"""Parity before speed: the engine against the eager PyTorch model, post by post.

Both sides read text, pictures and words through the runtime, and decode the same way; only the
model's numbers come from different places.
"""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.report.records import ChangeRecord, F1Record, HeldRecord, TierParity
from amlr.export.parity import Key, change_bound, count_changes, entity_keys
from amlr.kernels import is_tuning_half
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.pipeline import Pipeline, ScoredPost
from amlr.runtime.results import Entity, Raw, Result
from amlr.training.score import count_spans

CHUNK_POSTS = 64
FP32_TOLERANCE = 1e-4
UNDECIDABLE_MARGIN = 1e-5
"""Below this the float32 answer itself depends on the order of additions."""
MAX_LISTED = 200
# In the order of the data's way: the first one that is off is where to look.
OUTPUTS = ("emissions", "unit_logits")
_OUTPUT_NAMES = {
    "emissions": "emissions (text graph, token head)",
    "unit_logits": "unit_logits (picture graph or fusion)",
}
Keys = Set[Key]


def is_held(text: str) -> bool:
    """Whether calibration leaves a post out; the export splits by the same hash of the text."""
    return not is_tuning_half([text])[0]


def _no_posts() -> HeldRecord:
    return HeldRecord(
        posts=0, entities=0, changed_entities=0, changed_posts=0, change_bound=None, stages={}
    )


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one tier is counted by.

    Attributes:
        held: Posts that calibration leaves out.
        labelled: Entities of the eager model, of the tier, and true ones, of each labelled post.
    """

    held: HeldRecord = field(default_factory=_no_posts)
    labelled: list[tuple[Keys, Keys, Keys]] = field(default_factory=list)

    def add(self, text: str, before: Keys, after: Keys, gold: Keys | None, stage: str) -> None:
        """Count one post.

        Args:
            text: Its text.
            before: Entities of the eager model.
            after: Entities of the tier.
            gold: True ones, or None where unknown.
            stage: Precision that the tier's answer names.
        """
        if is_held(text):
            held = self.held
            held.posts += 1
            held.entities += len(before)
            held.changed_entities += count_changes(before, after)
            held.changed_posts += before != after
            held.stages[stage] = held.stages.get(stage, 0) + 1
        if gold is not None:
            self.labelled.append((before, after, gold))

    def records(self) -> tuple[F1Record | None, HeldRecord]:
        """F1, and the held posts; no change in n of them still allows a share of 3/n at 95 %."""
        held = self.held
        bound = change_bound(held.changed_posts, held.posts) if held.posts else None
        held = replace(held, change_bound=bound, stages=dict(held.stages))
        if not self.labelled:
            return None, held
        eager_keys, engine_keys, gold = map(list, zip(*self.labelled, strict=True))
        eager, engine = count_spans(gold, eager_keys), count_spans(gold, engine_keys)
        f1 = F1Record(
            posts=len(gold),
            entities=eager.gold,
            eager=round(eager.f1, 4),
            engine=round(engine.f1, 4),
        )
        return f1, held


@dataclass(slots=True, kw_only=True)
class Parity:
    """What comparing one tier found."""

    backend: str
    precision: str
    tolerance: float | None
    promised: bool = True
    posts: int = 0
    entities: int = 0
    changed_entities: int = 0
    undecidable_posts: int = 0
    undecidable_changed: int = 0
    failed_posts: int = 0
    warnings_differ: int = 0
    max_abs_error: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OUTPUTS, 0.0))
    smallest_margin: float | None = None
    changes: list[ChangeRecord] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def verdict(self) -> Literal["pass", "fail"]:
        """`pass`: no entity changed, and float32 numbers are within the tolerance."""
        within = self.tolerance is None or max(self.max_abs_error.values()) <= self.tolerance
        is_clean = not (self.changed_entities or self.failed_posts or self.warnings_differ)
        return "pass" if within and is_clean and self.posts else "fail"

    @property
    def reason(self) -> str:
        """Why it failed, one line; empty when it passed."""
        if self.verdict == "pass":
            return ""
        if not self.posts:
            return "no post was compared"
        if self.failed_posts:
            return f"{self.failed_posts} posts failed in the engine only"
        if self.warnings_differ:
            return f"{self.warnings_differ} posts used a picture on one side only"
        if self.changed_entities:
            where = self.changes[0].first_diverging if self.changes else ""
            return (
                f"{self.changed_entities} of {self.entities} entities changed over {self.posts} "
                f"posts; first diverging: {where}"
            )
        name, error = max(self.max_abs_error.items(), key=lambda item: item[1])
        return (
            f"{name} is off by {error:.3g}, allowed {self.tolerance:.3g}; "
            f"{error * 1.01:.3g} would pass"
        )

    def record(self) -> TierParity:
        """What goes into the report."""
        f1, held = self.tally.records()
        return TierParity(
            verdict=self.verdict,
            posts=self.posts,
            entities=self.entities,
            changed_entities=self.changed_entities,
            changed_posts=len(self.changes),
            promised=self.promised,
            f1=f1,
            held=held,
            max_abs_error={name: _finite(error) for name, error in self.max_abs_error.items()},
            backend=self.backend,
            precision=self.precision,
            tolerance=self.tolerance,
            reason=self.reason,
            failed_posts=self.failed_posts,
            undecidable_posts=self.undecidable_posts,
            undecidable_changed_entities=self.undecidable_changed,
            smallest_margin=self.smallest_margin,
            changes=self.changes[:MAX_LISTED],
        )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


class EagerSide:
    """Answers of the eager model, computed once for any number of tiers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def answer(
        self, posts: Sequence[BenchPost]
    ) -> list[tuple[ScoredPost, tuple[Entity, ...], float | None]]:
        """Raw scores, entities and margin of each post."""
        decoder = Decoder.of(self._pipeline.bundle)
        scored = list(self._pipeline.score([item.post for item in posts]))
        known = [post.scores for post in scored if post.scores is not None]
        entities = iter(decoder.entities(known))
        leads = iter(decoder.margins([s for s in known if len(s.encoded.word_spans_n2)]).tolist())
        answers: list[tuple[ScoredPost, tuple[Entity, ...], float | None]] = []
        for post in scored:
            if post.scores is None:
                answers.append((post, (), None))
                continue
            # Without a word, or where no other answer is allowed, nothing can come close.
            has_words = len(post.scores.encoded.word_spans_n2) > 0
            answers.append((post, next(entities), _finite(next(leads)) if has_words else None))
        return answers


def compare(
    eager: EagerSide,
    engines: Sequence[tuple[Engine, Parity]],
    posts: Iterable[BenchPost],
) -> None:
    """Run both sides over the posts, in chunks, so that batches mix lengths and pictures.

    Args:
        eager: The reference.
        engines: Each tier with the record to fill.
        posts: Any number.
    """
    source = iter(posts)
    while chunk := list(islice(source, CHUNK_POSTS)):
        expected = eager.answer(chunk)
        good = [
            item.post
            for item, (post, _, _) in zip(chunk, expected, strict=True)
            if post.error is None
        ]
        for engine, parity in engines:
            raws = iter(engine.raw(good))
            results = engine.tag_batch([item.post for item in chunk])
            for item, (post, entities, lead), result in zip(chunk, expected, results, strict=True):
                if post.error is not None or result.error is not None:
                    parity.failed_posts += (post.error is None) != (result.error is None)
                    if post.error is None:
                        next(raws)
                    continue
                raw = next(raws)
                parity.warnings_differ += post.image_used != result.image_used
                _record(parity, item, post, entities, lead, raw, result)


def _record(
    parity: Parity,
    item: BenchPost,
    post: ScoredPost,
    entities: Sequence[Entity],
    lead: float | None,
    raw: Raw,
    result: Result,
) -> None:
    errors = _errors(post, raw)
    for name, error in errors.items():
        parity.max_abs_error[name] = max(parity.max_abs_error[name], error)
    parity.posts += 1
    parity.entities += len(entities)
    undecidable = lead is not None and lead < UNDECIDABLE_MARGIN
    parity.undecidable_posts += undecidable
    if lead is not None:
        known = parity.smallest_margin
        parity.smallest_margin = lead if known is None else min(known, lead)
    before, after = entity_keys(entities), entity_keys(result.entities)
    gold = None if item.gold is None else set(item.gold)
    parity.tally.add(item.post.text, before, after, gold, result.precision)
    if before == after:
        return
    change = ChangeRecord(
        id=item.id,
        text=item.post.text,
        missing=sorted(before - after),
        added=sorted(after - before),
        margin=lead,
        undecidable=undecidable,
        first_diverging=_first_diverging(errors, parity.tolerance),
        errors={name: _finite(error) for name, error in errors.items()},
    )
    parity.changes.append(change)
    if undecidable:
        parity.undecidable_changed += change.entities
    else:
        parity.changed_entities += change.entities


def _errors(post: ScoredPost, raw: Raw) -> dict[str, float]:
    scores = post.scores
    if scores is None:
        return dict.fromkeys(OUTPUTS, 0.0)
    pairs = {
        "emissions": (scores.emissions_ty, raw.emissions),
        "unit_logits": (scores.unit_logits_uc, raw.unit_logits),
    }
    errors = {}
    for name, (a, b) in pairs.items():
        error = float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")
        errors[name] = float("inf") if np.isnan(error) else error
    return errors


def _first_diverging(errors: dict[str, float], tolerance: float | None) -> str:
    """First output, in the order of computing, that is off by more than float32 noise allows."""
    limit = tolerance or FP32_TOLERANCE
    return next((_OUTPUT_NAMES[name] for name in OUTPUTS if errors[name] > limit), "decoder")
