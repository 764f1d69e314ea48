"""The parity gate: an exported variant against the eager model, in numbers and in entities."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import ParityError
from amlr.runtime.engine import Engine
from amlr.runtime.results import Entity, Post, Raw, Result
from amlr.runtime.windows import PostScores

FP32_TOLERANCE = 1e-4
OUTPUTS = ("unit_logits", "emissions")
CHUNK_POSTS = 64
Key = tuple[int, int, str]


@dataclass(slots=True, kw_only=True)
class ParityReport:
    """What a comparison found.

    Attributes:
        posts: Posts compared.
        entities: Entities of the eager model.
        changed_entities: Entities that one side has and the other has not, by offsets and label;
            a changed label or boundary counts once.
        changed_posts: Texts of at most ten posts with a change.
        max_abs_error: Largest absolute difference of each raw output.
        worst_post: Text of the post with the largest difference.
    """

    posts: int = 0
    entities: int = 0
    changed_entities: int = 0
    changed_posts: list[str] = field(default_factory=list)
    max_abs_error: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OUTPUTS, 0.0))
    worst_post: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Numbers for the manifest; no texts."""
        return {
            "posts": self.posts,
            "entities": self.entities,
            "changed_entities": self.changed_entities,
            "max_abs_error": dict(self.max_abs_error),
        }


def entity_keys(entities: Iterable[Entity]) -> frozenset[Key]:
    """What makes two entities the same: offsets and label."""
    return frozenset((e.start, e.end, e.label) for e in entities)


def count_changes(expected: Set[Key], actual: Set[Key]) -> int:
    """How many entities differ; a changed label or boundary counts once."""
    return max(len(expected - actual), len(actual - expected))


def changed_entities(expected: Result, actual: Result) -> int:
    """How many entities differ between two answers to one post."""
    return count_changes(entity_keys(expected.entities), entity_keys(actual.entities))


def change_bound(changed: int, posts: int) -> float | None:
    """Share of posts that may still change, at 95 %, if none of n did: three in n."""
    return None if changed else min(1.0, 3 / max(1, posts))


def unit_gains(scores: PostScores) -> npt.NDArray[np.float32]:
    """What a decoder weighs: each unit's classes less "none", shape (U, C)."""
    logits = scores.unit_logits_uc
    gains: npt.NDArray[np.float32] = logits[:, 1:] - logits[:, :1]
    return gains


def raw_errors(expected: Raw, actual: Raw) -> dict[str, float]:
    """Largest absolute difference of each raw output of one post; NaN counts as infinite."""
    errors = {}
    for name in OUTPUTS:
        a, b = getattr(expected, name), getattr(actual, name)
        if a.shape != b.shape:
            raise ParityError(f"{name} has shape {b.shape}, the eager model gives {a.shape}")
        error = float(np.abs(a - b).max(initial=0.0))
        errors[name] = float("inf") if np.isnan(error) else error
    return errors


def compare(
    eager: Engine,
    candidate: Engine,
    posts: Iterable[Post],
    report: ParityReport | None = None,
) -> ParityReport:
    """Run both engines over the posts.

    Args:
        eager: Engine on `EagerProvider`.
        candidate: Engine on the variant to prove.
        posts: Any number; taken in chunks, so that batches mix lengths and pictures.
        report: Adds to this one instead of starting a new one.
    """
    report = report or ParityReport()
    source = iter(posts)
    while chunk := list(islice(source, CHUNK_POSTS)):
        _compare_chunk(report, eager, candidate, chunk)
    return report


def _compare_chunk(
    report: ParityReport, eager: Engine, candidate: Engine, posts: Sequence[Post]
) -> None:
    raws = zip(eager.raw(posts), candidate.raw(posts), strict=True)
    results = zip(eager.tag_batch(posts), candidate.tag_batch(posts), strict=True)
    for post, (raw, other), (expected, actual) in zip(posts, raws, results, strict=True):
        errors = raw_errors(raw, other)
        if max(errors.values()) > max(report.max_abs_error.values()):
            report.worst_post = post.text
        for name, error in errors.items():
            report.max_abs_error[name] = max(report.max_abs_error[name], error)
        changed = changed_entities(expected, actual)
        if changed and len(report.changed_posts) < 10:
            report.changed_posts.append(post.text)
        report.posts += 1
        report.entities += len(expected.entities)
        report.changed_entities += changed


def require(report: ParityReport, variant: str, tolerance: float) -> None:
    """Fail where a variant is not the eager model.

    Raises:
        ParityError: A raw output is off by more than `tolerance`, or an entity changed; names the
            output, the error, and the tolerance that would pass.
    """
    for name, error in report.max_abs_error.items():
        if not error <= tolerance:
            raise ParityError(
                f"{variant}: {name} differs from the eager model by up to {error:.3g} over "
                f"{report.posts} posts; allowed {tolerance:.3g}; a tolerance of {error * 1.01:.3g} "
                f"would pass; worst post: {report.worst_post[:80]!r}"
            )
    if report.changed_entities:
        raise ParityError(
            f"{variant}: {report.changed_entities} of {report.entities} entities changed over "
            f"{report.posts} posts although every number is within {tolerance:.3g}; first: "
            f"{report.changed_posts[0][:80]!r}"
        )
