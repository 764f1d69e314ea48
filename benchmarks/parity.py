"""Parity before speed: tiers of the engine against the eager PyTorch model, post by post.

Both sides read text, pictures and words through the runtime, and decode the same way; only the
model's numbers come from different places. "Changed" means what it means in `amlr.export.parity`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.report.records import ChangeRecord, F1Record, HeldRecord, TierParity
from amlr.cli_support import progress
from amlr.export.parity import (
    FP32_TOLERANCE,
    Answer,
    ask,
    change_bound,
    compare,
    count_changes,
    entity_keys,
    leads,
)
from amlr.kernels import is_tuning_half
from amlr.kernels.arrays import Doubles
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post
from amlr.runtime.sentinel import UNDECIDABLE
from amlr.training.score import count_spans

_CHUNK = 64
MAX_LISTED = 200
# In the order of the data's way: the first one that is off is where to look.
_OUTPUTS = {
    "emissions": "emissions (text graph, token head)",
    "unit_logits": "unit_logits (picture graph or fusion)",
}


def ask_alone(engine: Engine, posts: Sequence[BenchPost]) -> list[Answer]:
    """Answers of an engine of one tier, in one pass, with their scores."""
    answers: list[Answer] = []
    for chunk in _chunks(posts, engine.precision):
        answers += ask(engine, chunk)
    return answers


def _chunks(posts: Sequence[BenchPost], label: str) -> Iterator[list[Post]]:
    """The posts by some, so that batches mix lengths and pictures, with a bar of progress."""
    starts = range(0, len(posts), _CHUNK)
    for start in progress(starts, label, len(posts), size=lambda s: min(_CHUNK, len(posts) - s)):
        yield [item.post for item in posts[start : start + _CHUNK]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """What the eager model says of all posts.

    Attributes:
        posts: The posts (P).
        answers: Its answers (P).
        leads: How far each answer is ahead of the best other one (P); infinite without another.
    """

    posts: Sequence[BenchPost]
    answers: Sequence[Answer]
    leads: Doubles

    @classmethod
    def of(cls, engine: Engine, posts: Sequence[BenchPost]) -> Self:
        """Ask an engine around the eager model."""
        answers = ask_alone(engine, posts)
        return cls(posts=posts, answers=answers, leads=leads(answers, engine.bundle))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TierAnswers:
    """What a tier says of all posts.

    Attributes:
        answers: Entities as users get them, and the raw scores of float32 where it certifies (P).
        stages: Precision that each answer names (P).
        certified: Whether low precision gave it, certified equal to float32's (P).
    """

    answers: Sequence[Answer]
    stages: Sequence[str]
    certified: Sequence[bool]

    @classmethod
    def of(cls, engine: Engine, posts: Sequence[BenchPost]) -> Self:
        """Ask an engine as a user does, and for its scores."""
        answers: list[Answer] = []
        stages: list[str] = []
        certified: list[bool] = []
        for chunk in _chunks(posts, engine.precision):
            scored = engine.strategy.exact().score(chunk)
            for result, of_post in zip(engine.tag_batch(chunk), scored, strict=True):
                stages.append(result.precision)
                certified.append(result.certified is True)
                answers.append(
                    Answer(
                        scores=of_post.scores,
                        entities=entity_keys(result.entities),
                        image_used=result.image_used,
                        failed="" if result.error is None else result.error["message"],
                    )
                )
        return cls(answers=answers, stages=stages, certified=certified)


def judge(
    reference: Reference,
    tier: TierAnswers,
    *,
    backend: str,
    precision: str,
    tolerance: float | None,
    promised: bool = True,
) -> TierParity:
    """Compare a tier with the eager model.

    Args:
        reference: The eager model's answers.
        tier: The tier's answers to the same posts.
        backend: Name for the record.
        precision: The same.
        tolerance: Largest error of a raw output; None judges by entities alone.
        promised: Whether the tier is said to change no entity.
    """
    expected, actual = reference.answers, tier.answers
    whole = compare(expected, actual)
    ties = reference.leads <= UNDECIDABLE
    changes = [
        _change(item, before, after, float(lead), tolerance or FP32_TOLERANCE)
        for item, before, after, lead in (
            (reference.posts[i], expected[i], actual[i], reference.leads[i]) for i in whole.changed
        )
    ]
    in_ties = sum(change.entities for change in changes if change.undecidable)
    failed = sum(bool(a.failed) != bool(b.failed) for a, b in zip(expected, actual, strict=True))
    pictures = sum(a.image_used != b.image_used for a, b in zip(expected, actual, strict=True))
    record = TierParity(
        verdict="fail",
        posts=whole.posts,
        entities=whole.entities,
        changed_entities=whole.changed_entities - in_ties,
        max_abs_error={name: _finite(whole.max_abs_error[name]) for name in _OUTPUTS},
        backend=backend,
        precision=precision,
        tolerance=tolerance,
        failed_posts=failed,
        undecidable_posts=int(ties.sum()),
        undecidable_changed_entities=in_ties,
        smallest_margin=_finite(float(reference.leads.min(initial=np.inf))),
        promised=promised,
        changed_posts=len(whole.changed),
        f1=_f1(reference, tier),
        held=_held(reference, tier),
        changes=changes[:MAX_LISTED],
    )
    record.reason = failure(record, pictures)
    record.verdict = "fail" if record.reason else "pass"
    return record


def failure(record: TierParity, pictures: int = 0) -> str:
    """Why a tier failed, one line; empty where it passed.

    Args:
        record: Its counts.
        pictures: Posts that used a picture on one side only.
    """
    if not record.posts:
        return "no post was compared"
    if record.failed_posts:
        return f"{record.failed_posts} posts failed on one side only"
    if pictures:
        return f"{pictures} posts used a picture on one side only"
    if record.changed_entities:
        where = record.changes[0].first_diverging if record.changes else ""
        return (
            f"{record.changed_entities} of {record.entities} entities changed over "
            f"{record.posts} posts; first diverging: {where}"
        )
    errors = {n: np.inf if e is None else e for n, e in record.max_abs_error.items()}
    name, error = max(errors.items(), key=lambda pair: pair[1])
    if record.tolerance is None or error <= record.tolerance:
        return ""
    return (
        f"{name} is off by {error:.3g}, allowed {record.tolerance:.3g}; "
        f"{error * 1.01:.3g} would pass"
    )


def _change(
    item: BenchPost, before: Answer, after: Answer, lead: float, limit: float
) -> ChangeRecord:
    errors = compare([before], [after]).max_abs_error
    diverging = (where for name, where in _OUTPUTS.items() if errors[name] > limit)
    return ChangeRecord(
        id=item.id,
        text=item.post.text,
        missing=sorted(before.entities - after.entities),
        added=sorted(after.entities - before.entities),
        margin=_finite(lead),
        undecidable=lead <= UNDECIDABLE,
        first_diverging=next(diverging, "decoder"),
        errors={name: _finite(error) for name, error in errors.items()},
    )


def _held(reference: Reference, tier: TierAnswers) -> HeldRecord:
    """The posts that calibration leaves out; the export splits by the same hash of the text."""
    tuning = is_tuning_half([item.post.text for item in reference.posts])
    rows = np.flatnonzero(~tuning).tolist()
    pairs = [(reference.answers[i].entities, tier.answers[i].entities) for i in rows]
    changed = sum(before != after for before, after in pairs)
    return HeldRecord(
        posts=len(rows),
        entities=sum(len(before) for before, _ in pairs),
        changed_entities=sum(count_changes(before, after) for before, after in pairs),
        changed_posts=changed,
        change_bound=change_bound(changed, len(rows)) if rows else None,
        stages=dict(Counter(tier.stages[i] for i in rows)),
    )


def _f1(reference: Reference, tier: TierAnswers) -> F1Record | None:
    """Strict F1 of the labelled posts, of both sides."""
    rows = [i for i, item in enumerate(reference.posts) if item.gold is not None]
    if not rows:
        return None
    gold = [set(reference.posts[i].gold or ()) for i in rows]
    eager, engine = (
        count_spans(gold, [answers[i].entities for i in rows])
        for answers in (reference.answers, tier.answers)
    )
    return F1Record(
        posts=len(rows),
        entities=eager.gold,
        eager=round(eager.f1, 4),
        engine=round(engine.f1, 4),
    )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
