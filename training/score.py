"""Entity scores: precision, recall and F1 over exact spans, strict and lenient, per type.

Strict is IOB2 (an entity begins with `B-`), lenient is conlleval (a stray `I-` begins one). The two
differ only in how gold tags are read; a number without its mode means nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError
from amlr.runtime.results import Entity

Span = tuple[int, int, str]
Mode = Literal["strict", "lenient"]
MODES: tuple[Mode, Mode] = ("strict", "lenient")


def read_spans(tags: Sequence[str], mode: Mode) -> list[Span]:
    """Read entities out of BIO tags.

    Args:
        tags: `O`, `B-TYPE` or `I-TYPE` of each word; anything else counts as `O`.
        mode: In `strict` only `B-` opens an entity; in `lenient` an `I-` that continues nothing
            opens one too.

    Returns:
        (start, end, type) in words, end exclusive, in order.

    Example:
        >>> read_spans(["I-PER", "O", "B-LOC", "I-LOC", "I-ORG"], "strict")
        [(2, 4, 'LOC')]
        >>> read_spans(["I-PER", "O", "B-LOC", "I-LOC", "I-ORG"], "lenient")
        [(0, 1, 'PER'), (2, 4, 'LOC'), (4, 5, 'ORG')]
    """
    spans: list[Span] = []
    start, label = -1, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        if start >= 0 and not (prefix == "I" and kind == label):
            spans.append((start, position, label))
            start = -1
        if start < 0 and (prefix == "B" or (prefix == "I" and mode == "lenient")):
            start, label = position, kind
    return spans


def gold_spans(
    tags: Iterable[Sequence[str]], mode: Mode, rename: Mapping[str, str]
) -> list[list[Span]]:
    """Gold entities of posts, in the model's names of their types."""
    return [
        [(start, end, rename.get(label, label)) for start, end, label in read_spans(post, mode)]
        for post in tags
    ]


def write_tags(spans: Iterable[Span], length: int) -> list[str]:
    """BIO tags of non-overlapping spans; the inverse of `read_spans`."""
    tags = ["O"] * length
    for start, end, label in spans:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


def to_words(word_spans_n2: npt.NDArray[np.int32], entities: Iterable[Entity]) -> list[Span]:
    """Entities in characters of a text as spans of its words.

    Args:
        word_spans_n2: Characters of each word, (N, 2), end exclusive.
        entities: They begin and end with words.
    """
    spans = word_spans_n2.tolist()
    first = {start: number for number, (start, _) in enumerate(spans)}
    last = {end: number for number, (_, end) in enumerate(spans)}
    return [(first[e.start], last[e.end] + 1, e.label) for e in entities]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Entities in gold, predicted, and in both."""

    correct: int
    predicted: int
    gold: int

    @property
    def precision(self) -> float:
        """Share of predicted entities that are right, 0..1; 0 if none."""
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Share of gold entities found, 0..1; 0 if none."""
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, 0..1."""
        return 2 * self.correct / max(1, self.predicted + self.gold)

    def to_dict(self) -> dict[str, float | int]:
        """Plain values for JSON; shares are 0..1."""
        return {
            "precision": round(self.precision, 6),
            "recall": round(self.recall, 6),
            "f1": round(self.f1, 6),
            "correct": self.correct,
            "predicted": self.predicted,
            "gold": self.gold,
        }


def count_spans(gold: Sequence[Iterable[Span]], predicted: Sequence[Iterable[Span]]) -> Counts:
    """Compare two lists of posts' entities, each post on its own.

    Raises:
        InputError: The lists have different lengths.
    """
    if len(gold) != len(predicted):
        raise InputError(
            f"{len(predicted)} posts predicted for {len(gold)} gold posts; pass the same posts"
        )
    correct = found = wanted = 0
    for gold_set, predicted_set in zip(map(set, gold), map(set, predicted), strict=True):
        correct += len(gold_set & predicted_set)
        found += len(predicted_set)
        wanted += len(gold_set)
    return Counts(correct=correct, predicted=found, gold=wanted)


def score_posts(
    gold_tags: Sequence[Sequence[str]],
    predicted: Sequence[Iterable[Span]],
    mode: Mode,
    *,
    rename: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Score predicted entities against gold tags.

    Args:
        gold_tags: BIO tags of each post's words.
        predicted: Entities of each post in words, named as the model names them.
        mode: How gold tags are read.
        rename: Corpus type -> model type where names differ. Several corpus types may have one
            model type: entities are compared in the model's names.

    Returns:
        `mode`, the counts and shares over all types, and the same per type under `per_type`, which
        has the corpus's name of a type, or the model's where the corpus has several.
    """
    to_model = rename or {}
    gold = gold_spans(gold_tags, mode, to_model)
    found = [list(spans) for spans in predicted]
    names: dict[str, list[str]] = {}
    for data, model in to_model.items():
        names.setdefault(model, []).append(data)
    labels = {label for spans in [*gold, *found] for *_, label in spans}
    shown = {
        label: names[label][0] if len(names.get(label, ())) == 1 else label for label in labels
    }
    per_type = {
        shown[label]: count_spans(_only(gold, label), _only(found, label)).to_dict()
        for label in sorted(labels, key=shown.__getitem__)
    }
    return {"mode": mode, **count_spans(gold, found).to_dict(), "per_type": per_type}


def _only(posts: Sequence[Sequence[Span]], label: str) -> list[list[Span]]:
    return [[span for span in spans if span[2] == label] for spans in posts]
