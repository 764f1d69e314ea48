"""Text to model inputs: words, subwords with character offsets, windows. Shared with training.

Words come from the caller or from a rule of `amlr.runtime.words`. Each word is
tokenized on its own, so a subword never spans two words, and texts longer than the model's limit
become several windows that overlap at word boundaries; nothing is cut away silently.

Shape letters: N words, T subword steps of one window (with its two special tokens).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, Self, TypeVar

import numpy as np

from amlr.errors import InputError
from amlr.kernels.arrays import Ints, Ints32
from amlr.runtime.chunks import ChunkReader, PlacedChunks
from amlr.runtime.words import WORD_RULES, WORDS_1, WORDS_2, WordSplitter

Spans = Sequence[tuple[int, int]] | Ints32
AnyInts = TypeVar("AnyInts", Ints, Ints32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """How text becomes subwords; part of the bundle's manifest.

    Attributes:
        max_tokens: Longest window in subwords, the two special tokens included.
        overlap_tokens: Subwords that neighbouring windows of a long text share, at most.
        url_text: What a URL is tokenized as, or None to tokenize it as it stands.
        max_chars: Longest text accepted.
        max_word_tokens: Subwords kept of one word; the rest of a longer word is not read.
        word_rule: Name of the rule that splits free text.
    """

    max_tokens: int = 128
    overlap_tokens: int = 32
    url_text: str | None = "<url>"
    max_chars: int = 100_000
    max_word_tokens: int = 64
    word_rule: str = WORDS_2

    def __post_init__(self) -> None:
        if self.word_rule not in WORD_RULES:
            raise InputError(
                f"unknown word rule {self.word_rule!r}, expected one of {WORD_RULES}; "
                "use a version of amlr that knows it"
            )
        if self.overlap_tokens < 1 or self.max_word_tokens < 1 or self.max_chars < 1:
            raise InputError("overlap_tokens, max_word_tokens and max_chars must be at least 1")
        if self.max_tokens < self.overlap_tokens + 3:
            raise InputError(
                f"max_tokens {self.max_tokens} leaves no room beside an overlap of "
                f"{self.overlap_tokens}; raise max_tokens or lower overlap_tokens"
            )

    @property
    def word_limit(self) -> int:
        """Subwords kept of one word, so that a window always moves on by a word."""
        return min(self.max_word_tokens, self.max_tokens - 2 - self.overlap_tokens)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values, which once named no rule; other keys are ignored."""
        values = {"word_rule": WORDS_1, **values}
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


@dataclass(frozen=True, slots=True, kw_only=True)
class TextWindow:
    """One model input: a run of whole words between two special tokens.

    Attributes:
        input_ids_t: Token ids, first the CLS and last the SEP id, shape (T,).
        shape_ids_t: Shape class 1..8 of the subword's word, 0 for specials, shape (T,).
        first_n: Position of each word's first subword, shape (n,).
        last_n: Position of each word's last subword, shape (n,).
        word_start: Index in the post of the window's first word.
    """

    input_ids_t: Ints
    shape_ids_t: Ints
    first_n: Ints32
    last_n: Ints32
    word_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedText:
    """One post's text, ready for batching. Without words there are no windows."""

    text: str
    word_spans_n2: Ints32
    windows: tuple[TextWindow, ...]


def load_tokenizer(text: str) -> Any:
    """Build a `tokenizers.Tokenizer` from its JSON, without stored padding or truncation.

    Both are shared, mutable state of the tokenizer, and would break offsets and windows.

    Raises:
        InputError: Not a tokenizers JSON file.
    """
    from tokenizers import Tokenizer

    try:
        values = json.loads(text)
        values["truncation"] = values["padding"] = None
        return Tokenizer.from_str(json.dumps(values))
    # The library raises a bare Exception for whatever it does not like.
    except Exception as error:
        raise InputError(
            f"not a Hugging Face tokenizers file: {error}; expected tokenizer.json",
            code="tokenizer_invalid",
        ) from error


class TextEncoder:
    """Tokenize posts. Safe to share between threads."""

    def __init__(
        self, tokenizer: Any, spec: TextSpec, *, cls_id: int, sep_id: int, pad_id: int, unk_id: int
    ) -> None:
        """Wrap a `tokenizers.Tokenizer`; one that pads or truncates is copied without that.

        Byte-level tokenizers (RoBERTa) must have been saved with `add_prefix_space`.
        """
        if tokenizer.padding is not None or tokenizer.truncation is not None:
            tokenizer = load_tokenizer(tokenizer.to_str())
        self.spec = spec
        self.cls_id, self.sep_id, self.pad_id, self.unk_id = cls_id, sep_id, pad_id, unk_id
        self._splitter = WordSplitter(spec.word_rule, tokenizer.pre_tokenizer)
        self._reader = ChunkReader(
            tokenizer,
            self._splitter.split,
            looks_back=self._splitter.looks_back,
            url_text=spec.url_text,
            unk_id=unk_id,
            word_limit=spec.word_limit,
        )

    def split(self, text: str) -> Ints32:
        """Words of free text as character spans, shape (N, 2), by the rule of the spec."""
        return self._splitter.split(text)

    def prepare(self, text: str, spans: Spans | None = None) -> tuple[str, Ints32 | None]:
        """Check one post, for `encode_prepared`.

        Args:
            text: The text.
            spans: Character spans of its words (ordered, disjoint, non-empty), or None for the
                word rule.

        Returns:
            The text, and the word spans as an array of shape (N, 2) where they were given.

        Raises:
            InputError: The text is no string or too long, or the spans do not fit it.
        """
        if not isinstance(text, str):
            raise InputError(f"text must be a string, got {type(text).__name__}", "text_invalid")
        if len(text) > self.spec.max_chars:
            raise InputError(
                f"text has {len(text)} characters, at most {self.spec.max_chars} are accepted; "
                "split it into several posts",
                "text_too_long",
            )
        return text, None if spans is None else _check_spans(text, spans)

    def encode(self, posts: Iterable[tuple[str, Spans | None]]) -> list[EncodedText]:
        """Tokenize posts in one call of the tokenizer.

        Args:
            posts: Text and word spans of each, as in `prepare`.

        Raises:
            InputError: As `prepare`, for the first post that is wrong.
        """
        return self.encode_prepared([self.prepare(text, spans) for text, spans in posts])

    def encode_prepared(self, posts: Sequence[tuple[str, Ints32 | None]]) -> list[EncodedText]:
        """Tokenize what `prepare` returned."""
        if not posts:
            return []
        flat = FlatTexts(self._reader.read(posts), self.cls_id, self.sep_id)
        return [self._assemble(text, flat, place) for place, (text, _) in enumerate(posts)]

    def token_offsets(self, encoded: EncodedText) -> Ints32:
        """Characters of each subword of a whole text, specials (0, 0), shape (T, 2).

        They are made when asked for, as no tag needs them.
        """
        if not encoded.windows:
            return np.zeros((0, 2), np.int32)
        return _framed(self._reader.offsets(encoded.text, encoded.word_spans_n2), 0, 0)

    def _assemble(self, text: str, flat: "FlatTexts", place: int) -> EncodedText:
        words, steps = flat.words(place), flat.steps(place)
        spans = flat.spans_w2[words]
        if not len(spans):
            return EncodedText(text=text, word_spans_n2=spans, windows=())
        if steps.stop - steps.start <= self.spec.max_tokens:
            window = TextWindow(
                input_ids_t=flat.ids_t[steps],
                shape_ids_t=flat.shapes_t[steps],
                first_n=flat.first_w[words],
                last_n=flat.last_w[words],
                word_start=0,
            )
            return EncodedText(text=text, word_spans_n2=spans, windows=(window,))
        inner = slice(steps.start + 1, steps.stop - 1)
        ids_t, shape_t = flat.ids_t[inner], flat.shapes_t[inner]
        first_n = flat.first_w[words] - 1
        counts = flat.last_w[words] - first_n
        windows = []
        for word_start, word_end in _window_words(counts, self.spec):
            begin, end = first_n[word_start], first_n[word_end - 1] + counts[word_end - 1]
            inside = slice(word_start, word_end)
            windows.append(
                TextWindow(
                    input_ids_t=_framed(ids_t[begin:end], self.cls_id, self.sep_id),
                    shape_ids_t=_framed(shape_t[begin:end], 0, 0),
                    first_n=(first_n[inside] - begin + 1).astype(np.int32),
                    last_n=(first_n[inside] + counts[inside] - begin).astype(np.int32),
                    word_start=word_start,
                )
            )
        return EncodedText(text=text, word_spans_n2=spans, windows=tuple(windows))


class FlatTexts:
    """Arrays over the words and steps of several texts; each text is a slice of them.

    W words of all texts, T steps of all texts, two special tokens of each text that has words
    included.

    Attributes:
        spans_w2: Characters of each word in its text.
        first_w: Position of each word's first subword in its text.
        last_w: Position of each word's last subword.
        ids_t: Token ids.
        shapes_t: Shape class of the subword's word, 0 for specials.
    """

    def __init__(self, placed: PlacedChunks, cls_id: int, sep_id: int) -> None:
        """Lay chunks out one after another."""
        # Of each chunk; columns of tuples, as chunks are many.
        words, steps = zip(*placed.chunks, strict=True) if placed.chunks else ((), ())
        words_c = np.array(list(map(len, words)), np.int64) // 4
        steps_c = np.array(list(map(len, steps)), np.int64) // 2
        steps_ends = steps_c.cumsum()
        words_before = [0, *words_c.cumsum().tolist()]
        steps_before = [0, *steps_ends.tolist()]
        self._words, self._steps = [0], [0]
        framed: list[tuple[int, ...]] = []
        first_steps: list[int] = []
        place = 0
        for count in placed.counts:
            stop = place + count
            size = steps_before[stop] - steps_before[place]
            first_steps += [1 - steps_before[place]] * count
            if size:
                framed += ((cls_id, 0), *steps[place:stop], (sep_id, 0))
                size += 2
            self._words.append(words_before[stop])
            self._steps.append(self._steps[-1] + size)
            place = stop

        table = np.fromiter(chain.from_iterable(words), np.int32, 4 * words_before[-1])
        table = table.reshape(-1, 4)
        shifts = np.array((placed.starts, first_steps), np.int32)
        shifts[1] += steps_ends - steps_c
        character_w, step_w = shifts.repeat(words_c, axis=1)[:, :, None]
        table[:, :2] += character_w
        table[:, 2:] += step_w
        self.spans_w2, self.first_w, self.last_w = table[:, :2], table[:, 2], table[:, 3]
        flat = np.fromiter(chain.from_iterable(framed), np.int64, 2 * self._steps[-1])
        self.ids_t, self.shapes_t = flat.reshape(-1, 2).T

    def words(self, place: int) -> slice:
        """Words of one text."""
        return slice(self._words[place], self._words[place + 1])

    def steps(self, place: int) -> slice:
        """Steps of one text, with its special tokens."""
        return slice(self._steps[place], self._steps[place + 1])


def _framed(values: AnyInts, first: int, last: int) -> AnyInts:
    """Rows between the two special tokens'; np.pad costs ten times as much."""
    framed = np.empty((len(values) + 2, *values.shape[1:]), values.dtype)
    framed[0], framed[1:-1], framed[-1] = first, values, last
    return framed


def _window_words(counts_n: Ints, spec: TextSpec) -> list[tuple[int, int]]:
    """First and end word of each window: as many words as fit, then an overlap of whole words."""
    ends = np.cumsum(counts_n)
    begins = ends - counts_n
    budget = spec.max_tokens - 2
    windows: list[tuple[int, int]] = []
    start = 0
    while True:
        end = int(np.searchsorted(ends, begins[start] + budget, side="right"))
        windows.append((start, end))
        if end == len(counts_n):
            return windows
        # First word that begins at most `overlap_tokens` before the end of this window.
        start = int(np.searchsorted(begins, ends[end - 1] - spec.overlap_tokens))


def _check_spans(text: str, spans: Spans) -> Ints32:
    try:
        raw = np.asarray(spans if len(spans) else np.zeros((0, 2), np.int32))
    except (TypeError, ValueError) as error:
        raise InputError(f"words must be (start, end) pairs: {error}", "words_invalid") from error
    if raw.ndim != 2 or raw.shape[1] != 2 or raw.dtype.kind not in "iu":
        raise InputError(
            f"words must be (start, end) pairs of integers, got shape {raw.shape} of {raw.dtype}",
            "words_invalid",
        )
    flat = raw.reshape(-1).astype(np.int64)
    # Ordered and disjoint together mean that the flat sequence of all bounds never decreases.
    if len(flat) and (
        flat[0] < 0
        or flat[-1] > len(text)
        or bool((np.diff(flat) < 0).any())
        or bool((flat[::2] >= flat[1::2]).any())
    ):
        raise InputError(
            f"words must be ordered, disjoint, non-empty spans within 0..{len(text)} "
            "(end exclusive)",
            "words_invalid",
        )
    return flat.reshape(-1, 2).astype(np.int32)
