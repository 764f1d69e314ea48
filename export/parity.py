"""Parity: two sets of answers to the same posts, compared in numbers and in entities.

"Changed" means the same everywhere. An entity is its offsets and its label. A post has changed if
its entities differ, or if it failed on one side only.
"""

import math
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amlr.errors import ParityError
from amlr.export.steps import counted
from amlr.kernels.arrays import Doubles, Floats
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.pipeline import ScoredPost
from amlr.runtime.results import Entity, Post
from amlr.runtime.windows import PostScores

FP32_TOLERANCE = 1e-4
OUTPUTS = ("unit_logits", "emissions")
# Posts that are near: their leads tell how many posts have a lead near zero.
_NEAR_SHARE = 0.05
_NEAR_LEAST = 5
NEAREST = 32
Key = tuple[int, int, str]


def entity_keys(entities: Iterable[Entity]) -> frozenset[Key]:
    """What makes two entities the same: offsets and label."""
    return frozenset((e.start, e.end, e.label) for e in entities)


def count_changes(expected: Set[Key], actual: Set[Key]) -> int:
    """How many entities differ; a changed label or boundary counts once."""
    return max(len(expected - actual), len(actual - expected))


def change_bound(changed: int, posts: int) -> float | None:
    """Share of posts that may still change, at 95 %, if none of n did: three in n."""
    return None if changed else min(1.0, 3 / max(1, posts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What a model says about one post.

    Attributes:
        scores: Raw scores; None for a post without words, and for one that failed.
        entities: Offsets and label of each.
        image_used: Whether a picture took part.
        failed: Why the post could not be scored, NaN or infinite scores for example.
    """

    scores: PostScores | None
    entities: frozenset[Key]
    image_used: bool = False
    failed: str = ""


def ask(engine: Engine, posts: Sequence[Post]) -> list[Answer]:
    """Scores and entities of posts in one pass."""
    return decoded_answers(engine, list(counted(engine.pipeline.score(posts))))


def decoded_answers(engine: Engine, scored: Sequence[ScoredPost]) -> list[Answer]:
    """Entities from scores by the bundle's decoder."""
    scores = [post.scores for post in scored if post.scores is not None]
    decoded = iter(Decoder.of(engine.bundle).entities(scores))
    return [
        Answer(
            scores=post.scores,
            entities=frozenset() if post.scores is None else entity_keys(next(decoded)),
            image_used=post.image_used,
            failed="" if post.error is None else str(post.error),
        )
        for post in scored
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lead:
    """Leads of the expected answers over their best rivals, against the errors of those leads.

    Whether an entity changes on a few hundred posts is luck: the error is rounding noise, and a
    post changes if its lead happens to be smaller. So sizes are compared as well.

    Attributes:
        error: Root mean square, over posts, of how far the lead moved.
        closest: The smallest lead.
        times: The smallest ratio, over posts, of the lead to its own error or to `error`, whichever
            is larger; 0 where an answer changed.
        expected: Share of posts whose answer is expected to change: how many posts have a lead near
            zero, times how far the error reaches. An estimate, not a bound.
        nearest: Posts with the smallest leads, smallest first.
    """

    error: float = 0.0
    closest: float = math.inf
    times: float = math.inf
    expected: float = 0.0
    nearest: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, float]:
        """For the manifest, which is JSON: an infinite value is left out."""
        names = ("error", "closest", "times", "expected")
        values = {name: float(getattr(self, name)) for name in names}
        return {name: value for name, value in values.items() if math.isfinite(value)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """Answers against those that were expected.

    Attributes:
        posts: Posts compared.
        entities: Entities that were expected.
        changed: Indices of the posts that changed.
        changed_entities: Entities that differ; a changed label or boundary counts once.
        max_abs_error: Largest absolute difference of each raw output; infinite where a post has
            scores on one side only.
        worst_post: Index of the post with the largest difference.
        errors_p2: Per post the largest error of z_class - z_none and of the emissions, shape
            (P, 2), float64.
        score_error: Root mean square difference of the scores that decide.
        deviations_2: Root mean square difference of single logits and of single emissions.
        lead: Leads against their errors, where they were computed.
    """

    posts: int
    entities: int
    changed: tuple[int, ...]
    changed_entities: int
    max_abs_error: dict[str, float]
    worst_post: int = 0
    errors_p2: Doubles = field(repr=False, default_factory=lambda: np.zeros((0, 2)))
    score_error: float = 0.0
    deviations_2: Doubles = field(repr=False, default_factory=lambda: np.zeros(2))
    lead: Lead = field(default_factory=Lead)

    @property
    def largest_error(self) -> float:
        """Largest difference over all raw outputs."""
        return max(self.max_abs_error.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Numbers for the manifest; no texts, and nothing infinite, which JSON cannot hold."""
        errors = {n: error for n, error in self.max_abs_error.items() if math.isfinite(error)}
        return {
            "posts": self.posts,
            "entities": self.entities,
            "changed_entities": self.changed_entities,
            "changed_posts": len(self.changed),
            "change_bound": change_bound(len(self.changed), self.posts),
            "max_abs_error": errors,
        }


def compare(expected: Sequence[Answer], actual: Sequence[Answer]) -> Comparison:
    """Compare two answers to each of some posts.

    Raises:
        ParityError: Outputs of one post have different shapes.
    """
    changes = [_changes(a, b) for a, b in zip(expected, actual, strict=True)]
    outputs_p2, decisive_p2 = np.zeros((len(changes), 2)), np.zeros((len(changes), 2))
    # Of the logits, of the emissions, and of the scores that decide.
    squares, counts = np.zeros(3), np.zeros(3)
    for row, (a, b) in enumerate(zip(expected, actual, strict=True)):
        if a.scores is None or b.scores is None:
            outputs_p2[row] = decisive_p2[row] = 0.0 if a.scores is b.scores else np.inf
            continue
        logits = _difference("unit_logits", a.scores.unit_logits_uc, b.scores.unit_logits_uc)
        tokens = _difference("emissions", a.scores.emissions_ty, b.scores.emissions_ty)
        gains = a.scores.unit_gains_uc - b.scores.unit_gains_uc
        outputs_p2[row] = _largest(logits), _largest(tokens)
        decisive_p2[row] = _largest(gains), _largest(tokens)
        words = a.scores.word_emissions_ny - b.scores.word_emissions_ny
        moved = np.concatenate([gains.ravel(), words.ravel()])
        squares += [np.square(part, dtype=np.float64).sum() for part in (logits, tokens, moved)]
        counts += [logits.size, tokens.size, moved.size]
    deviations = np.sqrt(squares / np.maximum(1.0, counts))
    return Comparison(
        posts=len(changes),
        entities=sum(len(answer.entities) for answer in expected),
        changed=tuple(row for row, number in enumerate(changes) if number),
        changed_entities=sum(changes),
        max_abs_error=dict(zip(OUTPUTS, outputs_p2.max(axis=0, initial=0.0).tolist(), strict=True)),
        worst_post=int(outputs_p2.max(axis=1).argmax()) if changes else 0,
        errors_p2=decisive_p2,
        score_error=float(deviations[2]),
        deviations_2=deviations[:2],
    )


def _changes(expected: Answer, actual: Answer) -> int:
    """Changed entities of one post; at least one where it failed on one side only."""
    number = count_changes(expected.entities, actual.entities)
    return max(number, int(bool(expected.failed) != bool(actual.failed)))


def _difference(name: str, expected: Floats, actual: Floats) -> Floats:
    if expected.shape != actual.shape:
        raise ParityError(f"{name} has shape {actual.shape}, expected {expected.shape}")
    return expected - actual


def _largest(difference: Floats) -> float:
    largest = float(np.abs(difference).max(initial=0.0))
    return math.inf if math.isnan(largest) else largest


def require(result: Comparison, variant: str, tolerance: float, posts: Sequence[Post]) -> None:
    """Fail where a variant is not the eager model.

    Args:
        result: Of the variant's answers.
        variant: Its name, for the message.
        tolerance: Largest allowed error of each raw output, absolute.
        posts: What was compared, for the message.

    Raises:
        ParityError: A raw output is off by more than `tolerance`, or an entity changed; names the
            output, the error, and the tolerance that would pass.
    """
    for name, error in result.max_abs_error.items():
        if not error <= tolerance:
            raise ParityError(
                f"{variant}: {name} differs from the eager model by up to {error:.3g} over "
                f"{result.posts} posts; allowed {tolerance:.3g}; a tolerance of {error * 1.01:.3g} "
                f"would pass; worst post: {posts[result.worst_post].text[:80]!r}"
            )
    if result.changed:
        raise ParityError(
            f"{variant}: {result.changed_entities} of {result.entities} entities changed over "
            f"{result.posts} posts although every number is within {tolerance:.3g}; first: "
            f"{posts[result.changed[0]].text[:80]!r}"
        )


def leads(answers: Sequence[Answer], bundle: Bundle) -> Doubles:
    """Score of each answer minus the best other answer's; infinite without scores or another."""
    decoder, result = Decoder.of(bundle), np.full(len(answers), np.inf)
    for row, answer in enumerate(answers):
        # One by one: a batch is laid out as long as its longest post.
        if answer.scores is not None and len(answer.scores.encoded.word_spans_n2):
            result[row] = decoder.margins([answer.scores])[0]
    return result


def compare_leads(expected: Doubles, actual: Doubles, changed: Sequence[int]) -> Lead:
    """Leads of the expected answers against those of other answers.

    Args:
        expected: From `leads`, shape (P,).
        actual: The same of the other answers.
        changed: Posts whose answers differ: there the expected answer is now behind.
    """
    known = np.isfinite(expected) & np.isfinite(actual)
    if not known.any():
        return Lead()
    is_changed = np.zeros(len(expected), np.bool_)
    is_changed[list(changed)] = True
    lead = expected[known]
    moved = np.abs(np.where(is_changed, -actual, actual)[known] - lead)
    error = float(np.sqrt(np.mean(moved**2)))
    size = np.maximum(moved, max(error, np.finfo(np.float64).tiny))
    near = min(len(lead), max(_NEAR_LEAST, math.ceil(_NEAR_SHARE * len(lead))))
    reach = max(float(np.sort(lead)[near - 1]), np.finfo(np.float64).tiny)
    # An error is as often one way as the other: E max(0, e) = s / sqrt(2 pi) for a normal one.
    share = near / (len(expected) * reach) * error / math.sqrt(2 * math.pi)
    order = np.argsort(np.where(known, expected, np.inf), kind="stable")
    return Lead(
        error=error,
        closest=float(lead.min()),
        times=0.0 if len(changed) else float((lead / size).min()),
        expected=min(1.0, share),
        nearest=tuple(order[:NEAREST].tolist()),
    )
