"""Counts beside parity: posts that no variant was calibrated on, F1 where labels are known."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from amlr.kernels import is_tuning_half

Keys = set[tuple[int, int, str]]


def is_held(text: str) -> bool:
    """Whether calibration leaves a post out; the export splits by the same hash of the text."""
    return not is_tuning_half([text])[0]


@dataclass(slots=True, kw_only=True)
class Score:
    """Strict entity F1, micro."""

    hits: int = 0
    found: int = 0
    gold: int = 0

    def add(self, found: Keys, gold: Keys) -> None:
        """Count one post."""
        self.hits += len(found & gold)
        self.found += len(found)
        self.gold += len(gold)

    @property
    def f1(self) -> float:
        """0 where there is nothing to find."""
        return 2 * self.hits / max(1, self.found + self.gold)


@dataclass(slots=True, kw_only=True)
class Held:
    """The half of the posts that served no calibration, whichever file they come from."""

    posts: int = 0
    entities: int = 0
    changed_entities: int = 0
    changed_posts: int = 0
    stages: Counter[str] = field(default_factory=Counter)

    def add(self, before: Keys, after: Keys, stage: str) -> None:
        """Count one post; `stage` is the precision that its answer names."""
        self.posts += 1
        self.entities += len(before)
        self.changed_entities += max(len(before - after), len(after - before))
        self.changed_posts += before != after
        self.stages[stage] += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values; no change in n posts still allows a share of 3/n at 95 %."""
        is_clean = self.posts and not self.changed_posts
        return {
            "posts": self.posts,
            "entities": self.entities,
            "changed_entities": self.changed_entities,
            "changed_posts": self.changed_posts,
            "change_bound": min(1.0, 3 / self.posts) if is_clean else None,
            "stages": dict(self.stages),
        }


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one tier is counted by."""

    held: Held = field(default_factory=Held)
    eager: Score = field(default_factory=Score)
    engine: Score = field(default_factory=Score)
    labelled: int = 0

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
            self.held.add(before, after, stage)
        if gold is not None:
            self.labelled += 1
            self.eager.add(before, gold)
            self.engine.add(after, gold)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the tier's record."""
        f1 = None
        if self.labelled:
            f1 = {
                "posts": self.labelled,
                "entities": self.eager.gold,
                "eager": round(self.eager.f1, 4),
                "engine": round(self.engine.f1, 4),
            }
        return {"f1": f1, "held": self.held.to_dict()}
