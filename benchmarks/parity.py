"""Parity before speed: the engine against the eager PyTorch model, post by post.

Both sides read text, pictures and words through the runtime, and decode the same way; only the
model's numbers come from different places.
"""

from collections.abc import Iterable, Sequence, Set
from itertools import islice

import numpy as np

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.report.records import ChangeRecord, F1Record, HeldRecord, TierParity
from amlr.export.parity import (
    FP32_TOLERANCE,
    Answer,
    Key,
    ask,
    change_bound,
    count_changes,
    entity_keys,
    leads,
)
from amlr.kernels import is_tuning_half
from amlr.runtime.engine import Engine
from amlr.runtime.results import Raw, Result
from amlr.training.score import count_spans

CHUNK_POSTS = 64
UNDECIDABLE_MARGIN = 1e-5
"""Below this the float32 answer itself depends on the order of additions."""
MAX_LISTED = 200
# In the order of the data's way: the first one that is off is where to look.
_OUTPUTS = {
    "emissions": "emissions (text graph, token head)",
    "unit_logits": "unit_logits (picture graph or fusion)",
}
Keys = Set[Key]


def is_held(text: str) -> bool:
    """Whether calibration leaves a post out; the export splits by the same hash of the text."""
    return not is_tuning_half([text])[0]


class TierCheck:
    """One tier of the engine under comparison.

    Attributes:
        record: Counted post by post; `finish` adds the verdict.
        held: Its posts that calibration leaves out.
        errors: Largest error of each raw output, infinite ones included.
        warnings_differ: Posts that used a picture on one side only.
    """

    def __init__(
        self, backend: str, precision: str, tolerance: float | None, *, promised: bool = True
    ) -> None:
        self.held = HeldRecord(
            posts=0, entities=0, changed_entities=0, changed_posts=0, change_bound=None
        )
        self.record = TierParity(
            verdict="fail",
            posts=0,
            entities=0,
            changed_entities=0,
            max_abs_error=dict.fromkeys(_OUTPUTS, 0.0),
            backend=backend,
            precision=precision,
            tolerance=tolerance,
            promised=promised,
            held=self.held,
        )
        self.warnings_differ = 0
        self.errors = dict.fromkeys(_OUTPUTS, 0.0)
        self._labelled: list[tuple[Keys, Keys, Keys]] = []

    def add(self, item: BenchPost, expected: Answer, lead: float, raw: Raw, result: Result) -> None:
        """Compare one post.

        Args:
            item: The post.
            expected: The eager model's answer.
            lead: Its lead over the best different answer; infinite where there is none.
            raw: The tier's numbers.
            result: The tier's answer.
        """
        record, errors = self.record, _errors(expected, raw)
        self.errors = {name: max(error, errors[name]) for name, error in self.errors.items()}
        self.warnings_differ += expected.image_used != result.image_used
        margin = _finite(lead)
        undecidable = lead < UNDECIDABLE_MARGIN
        record.posts += 1
        record.entities += len(expected.entities)
        record.undecidable_posts += undecidable
        if margin is not None:
            known = record.smallest_margin
            record.smallest_margin = margin if known is None else min(known, margin)
        before, after = expected.entities, entity_keys(result.entities)
        gold = None if item.gold is None else set(item.gold)
        self.tally(item.post.text, before, after, gold, result.precision)
        if before == after:
            return
        limit = record.tolerance or FP32_TOLERANCE
        change = ChangeRecord(
            id=item.id,
            text=item.post.text,
            missing=sorted(before - after),
            added=sorted(after - before),
            margin=margin,
            undecidable=undecidable,
            first_diverging=next(
                (where for name, where in _OUTPUTS.items() if errors[name] > limit), "decoder"
            ),
            errors={name: _finite(error) for name, error in errors.items()},
        )
        record.changed_posts += 1
        record.changes.append(change)
        if undecidable:
            record.undecidable_changed_entities += change.entities
        else:
            record.changed_entities += change.entities

    def tally(self, text: str, before: Keys, after: Keys, gold: Keys | None, stage: str) -> None:
        """Count one post among those not calibrated on, and among those with known entities."""
        if is_held(text):
            held = self.held
            held.posts += 1
            held.entities += len(before)
            held.changed_entities += count_changes(before, after)
            held.changed_posts += before != after
            held.stages[stage] = held.stages.get(stage, 0) + 1
        if gold is not None:
            self._labelled.append((before, after, gold))

    def finish(self) -> TierParity:
        """The record, with all that only the end of the comparison can tell.

        No change in n held posts still allows a share of 3/n at 95 %.
        """
        record, held = self.record, self.held
        held.change_bound = change_bound(held.changed_posts, held.posts) if held.posts else None
        record.max_abs_error = {name: _finite(error) for name, error in self.errors.items()}
        record.reason = self._reason()
        record.verdict = "fail" if record.reason else "pass"
        record.changes = record.changes[:MAX_LISTED]
        if self._labelled:
            before, after, gold = map(list, zip(*self._labelled, strict=True))
            eager, engine = count_spans(gold, before), count_spans(gold, after)
            record.f1 = F1Record(
                posts=len(gold),
                entities=eager.gold,
                eager=round(eager.f1, 4),
                engine=round(engine.f1, 4),
            )
        return record

    def _reason(self) -> str:
        """Why the tier failed, one line; empty when it passed."""
        record = self.record
        if not record.posts:
            return "no post was compared"
        if record.failed_posts:
            return f"{record.failed_posts} posts failed in the engine only"
        if self.warnings_differ:
            return f"{self.warnings_differ} posts used a picture on one side only"
        if record.changed_entities:
            where = record.changes[0].first_diverging if record.changes else ""
            return (
                f"{record.changed_entities} of {record.entities} entities changed over "
                f"{record.posts} posts; first diverging: {where}"
            )
        name, error = max(self.errors.items(), key=lambda pair: pair[1])
        if record.tolerance is None or error <= record.tolerance:
            return ""
        return (
            f"{name} is off by {error:.3g}, allowed {record.tolerance:.3g}; "
            f"{error * 1.01:.3g} would pass"
        )


def compare(
    eager: Engine, tiers: Sequence[tuple[Engine, TierCheck]], posts: Iterable[BenchPost]
) -> None:
    """Run both sides over the posts, in chunks, so that batches mix lengths and pictures."""
    source = iter(posts)
    while chunk := list(islice(source, CHUNK_POSTS)):
        expected = ask(eager, [item.post for item in chunk])
        margins = leads(expected, eager.bundle).tolist()
        good = [a.post for a, b in zip(chunk, expected, strict=True) if not b.failed]
        for engine, check in tiers:
            raws = iter(engine.raw(good))
            results = engine.tag_batch([item.post for item in chunk])
            rows = zip(chunk, expected, margins, results, strict=True)
            for item, answer, lead, result in rows:
                raw = None if answer.failed else next(raws)
                if raw is None or result.error is not None:
                    check.record.failed_posts += bool(answer.failed) != (result.error is not None)
                else:
                    check.add(item, answer, lead, raw, result)


def _errors(expected: Answer, raw: Raw) -> dict[str, float]:
    scores = expected.scores
    if scores is None:
        return dict.fromkeys(_OUTPUTS, 0.0)
    pairs = {
        "emissions": (scores.emissions_ty, raw.emissions),
        "unit_logits": (scores.unit_logits_uc, raw.unit_logits),
    }
    errors = {}
    for name, (a, b) in pairs.items():
        error = float(np.abs(a - b).max(initial=0.0)) if a.shape == b.shape else float("inf")
        errors[name] = float("inf") if np.isnan(error) else error
    return errors


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
