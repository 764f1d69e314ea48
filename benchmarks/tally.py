"""Counts beside parity: posts that no variant was calibrated on, F1 where labels are known."""

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from amlr.export.parity import Key, change_bound, count_changes
from amlr.kernels import is_tuning_half
from amlr.training.score import count_spans

Keys = Set[Key]


def is_held(text: str) -> bool:
    """Whether calibration leaves a post out; the export splits by the same hash of the text."""
    return not is_tuning_half([text])[0]


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
        self.changed_entities += count_changes(before, after)
        self.changed_posts += before != after
        self.stages[stage] += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values; no change in n posts still allows a share of 3/n at 95 %."""
        bound = change_bound(self.changed_posts, self.posts) if self.posts else None
        return {
            "posts": self.posts,
            "entities": self.entities,
            "changed_entities": self.changed_entities,
            "changed_posts": self.changed_posts,
            "change_bound": bound,
            "stages": dict(self.stages),
        }


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one tier is counted by."""

    held: Held = field(default_factory=Held)
    eager: list[Keys] = field(default_factory=list)
    engine: list[Keys] = field(default_factory=list)
    gold: list[Keys] = field(default_factory=list)

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
            self.eager.append(before)
            self.engine.append(after)
            self.gold.append(gold)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the tier's record."""
        f1 = None
        if self.gold:
            eager, engine = (count_spans(self.gold, found) for found in (self.eager, self.engine))
            f1 = {
                "posts": len(self.gold),
                "entities": eager.gold,
                "eager": round(eager.f1, 4),
                "engine": round(engine.f1, 4),
            }
        return {"f1": f1, "held": self.held.to_dict()}
