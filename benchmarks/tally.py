"""Counts beside parity: posts that no variant was calibrated on, F1 where labels are known."""

from collections.abc import Set
from dataclasses import dataclass, field, replace

from amlr.benchmarks.report.records import F1Record, HeldRecord
from amlr.export.parity import Key, change_bound, count_changes
from amlr.kernels import is_tuning_half
from amlr.training.score import count_spans

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
