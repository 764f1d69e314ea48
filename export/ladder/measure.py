"""What a variant changes: entities, F1, errors and radii, against float32 on the same posts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.export.ladder.posts import ProofPost
from amlr.export.parity import Key, change_bound, count_changes, entity_keys, unit_gains
from amlr.runtime.engine import Engine
from amlr.runtime.windows import PostScores

WARM_UP = 32
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """All an engine says about some posts.

    Attributes:
        scores: Raw scores of each post; None for one without words.
        entities: (start, end, label) of each post.
        image_used: Whether a picture took part in each post.
        cold_ms: CPU milliseconds a post from text and picture file to raw scores.
        hit_ms: The same from text to entities, with the pictures encoded before.
    """

    scores: list[PostScores | None]
    entities: list[frozenset[Key]]
    image_used: list[bool]
    cold_ms: float
    hit_ms: float


@dataclass(slots=True, kw_only=True)
class Parity:
    """Float32 against a variant.

    Attributes:
        posts: Posts compared.
        entities: Entities of float32.
        changed_entities: A changed label or boundary counts once.
        changed_posts: Posts with a change.
        max_abs_error: Largest difference of each raw output, and of z_class - z_none.
        f1: Strict F1 of float32 and of the variant, where true entities are known.
        errors_p2: Per post the largest error of z_class - z_none and of the emissions.
    """

    posts: int
    entities: int
    changed_entities: int
    changed_posts: int
    max_abs_error: dict[str, float]
    f1: tuple[float, float] | None
    errors_p2: Doubles = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Numbers for the manifest; no texts."""
        values: dict[str, Any] = {
            "posts": self.posts,
            "entities": self.entities,
            "changed_entities": self.changed_entities,
            "changed_posts": self.changed_posts,
            "change_bound": change_bound(self.changed_posts, self.posts),
            "max_abs_error": dict(self.max_abs_error),
        }
        if self.f1 is not None:
            values["f1"] = {"fp32": self.f1[0], "variant": self.f1[1]}
        return values


def ask(engine: Engine, posts: Sequence[ProofPost]) -> Answers:
    """Run an engine over posts."""
    own = [proof.post for proof in posts]
    # Compiling, and the first visits of shapes, are paid once in a process's life.
    list(engine.pipeline.score(own[:WARM_UP]))
    engine.pipeline.images.reset()
    start = time.process_time()
    scores = [scored.scores for scored in engine.pipeline.score(own)]
    middle = time.process_time()
    results = engine.tag_batch(own)
    end = time.process_time()
    per_post = 1e3 / max(1, len(own))
    return Answers(
        scores=scores,
        entities=[entity_keys(result.entities) for result in results],
        image_used=[result.image_used for result in results],
        cold_ms=(middle - start) * per_post,
        hit_ms=(end - middle) * per_post,
    )


def compare(exact: Answers, other: Answers, posts: Sequence[ProofPost]) -> Parity:
    """Compare a variant's answers with float32's."""
    errors = {"unit_logits": 0.0, "emissions": 0.0}
    per_post = np.zeros((len(posts), 2))
    for row, (a, b) in enumerate(zip(exact.scores, other.scores, strict=True)):
        if a is None or b is None:
            continue
        tokens = _largest(a.emissions_ty - b.emissions_ty)
        errors["unit_logits"] = max(
            errors["unit_logits"], _largest(a.unit_logits_uc - b.unit_logits_uc)
        )
        errors["emissions"] = max(errors["emissions"], tokens)
        per_post[row] = _largest(unit_gains(a) - unit_gains(b)), tokens
    changed = [count_changes(a, b) for a, b in zip(exact.entities, other.entities, strict=True)]
    errors["unit_gains"] = float(per_post[:, 0].max(initial=0.0))
    return Parity(
        posts=len(posts),
        entities=sum(map(len, exact.entities)),
        changed_entities=sum(changed),
        changed_posts=sum(count > 0 for count in changed),
        max_abs_error=errors,
        f1=_f1s(exact, other, posts),
        errors_p2=per_post,
    )


def _largest(difference: npt.NDArray[np.float32]) -> float:
    return float(np.abs(difference).max(initial=0.0))


def _f1s(exact: Answers, other: Answers, posts: Sequence[ProofPost]) -> tuple[float, float] | None:
    gold = [proof.gold for proof in posts]
    known = [found for found in gold if found is not None]
    if len(known) < len(gold):
        return None
    return _f1(known, exact.entities), _f1(known, other.entities)


def _f1(gold: Sequence[frozenset[Key]], found: Sequence[frozenset[Key]]) -> float:
    from amlr.training.conll import SAME_CLASS

    def by_class(entities: frozenset[Key]) -> set[Key]:
        return {(start, end, SAME_CLASS.get(label, label)) for start, end, label in entities}

    # The corpus and the model may name one class differently.
    right = sum(len(by_class(a) & by_class(b)) for a, b in zip(gold, found, strict=True))
    total = sum(map(len, gold)) + sum(map(len, found))
    return 2 * right / total if total else 1.0
