"""Words and subwords of text by chunks, the runs of characters between white space.

No word rule looks past white space, and every word is tokenized on its own, so a chunk always gives
the same words, a word the same subwords, and most of both were seen before. What they gave is kept;
the chunks of a call that are new go through the word rule together, and their words that are new
through the tokenizer. Where the pre-tokenizer looks at the character before a chunk (`'s` is one
piece after a line's end and two after a blank in GPT-2's), a chunk is known together with that
character.
"""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from amlr.runtime.pieces import SOLID
from amlr.runtime.words import replace_surrogates

T = TypeVar("T")
# A chunk and the white space before it.
_LED = re.compile(r"\s?\S+")
Spans = npt.NDArray[np.int32]
URL_PREFIXES = ("http://", "https://", "www.")
# Some 500 bytes a chunk, 200 a word.
MOST_KNOWN, LONGEST_KNOWN = 20_000, 64


class Chunk(NamedTuple):
    """What one chunk gives. N words, T subwords.

    Attributes:
        words: Four numbers a word, 4 N: its first character and one past its last, its first and
            its last subword, all counted within the chunk.
        steps: Two numbers a subword, 2 T: token id, and shape class of its word.
    """

    words: tuple[int, ...]
    steps: tuple[int, ...]


class PlacedChunks(NamedTuple):
    """The chunks of several texts, one after another.

    Attributes:
        counts: Chunks of each text.
        starts: Place of each chunk in its text.
        chunks: What it gives.
    """

    counts: list[int]
    starts: list[int]
    chunks: list[Chunk]


def word_shape(word: str) -> int:
    """Class 1..8 of a word's look: digits, symbols, lower, UPPER, X, Title, Mixed, other.

    Example:
        >>> [word_shape(w) for w in ("2015", "!", "a", "USA", "I", "Love", "McD", "iPhone")]
        [1, 2, 3, 4, 5, 6, 7, 8]
    """
    if word.isdigit():
        return 1
    if word.islower():
        return 3
    if word.isupper():
        return 4 if len(word) > 1 else 5
    if not any(map(str.isalpha, word)):
        return 2
    if word[0].isupper():
        return 6 if word[1:].islower() else 7
    return 8


class _Known(Generic[T]):
    """What texts gave, up to a number of them. Safe to share between threads."""

    def __init__(self) -> None:
        self.values: dict[str, T] = {}
        self._lock = threading.Lock()

    def keep(self, made: Mapping[str, T]) -> None:
        """Add short ones."""
        with self._lock:
            # Rebuilt from what is in use now: simpler than an order of use, and hardly slower.
            if len(self.values) + len(made) > MOST_KNOWN:
                self.values = {}
            short = ((text, value) for text, value in made.items() if len(text) <= LONGEST_KNOWN)
            self.values.update(islice(short, MOST_KNOWN))


class ChunkReader:
    """Gives the chunks of texts. Safe to share between threads."""

    def __init__(
        self,
        tokenizer: Any,
        split: Callable[[str], Spans],
        *,
        looks_back: bool,
        url_text: str | None,
        unk_id: int,
        word_limit: int,
    ) -> None:
        """Wrap a tokenizer.

        Args:
            tokenizer: A `tokenizers.Tokenizer` without padding and truncation.
            split: The word rule: a text's words as character spans.
            looks_back: Whether it depends on the character before a chunk.
            url_text: What a URL is tokenized as, or None to tokenize it as it stands.
            unk_id: Stands for a word that gives no subword.
            word_limit: Subwords kept of one word.
        """
        self._tokenizer, self._split, self._looks_back = tokenizer, split, looks_back
        self._url_text, self._unk_id, self._limit = url_text, unk_id, word_limit
        self._known_chunks: _Known[Chunk] = _Known()
        # Steps of each word, as in `Chunk`.
        self._known_words: _Known[tuple[int, ...]] = _Known()

    def read(self, texts: Sequence[tuple[str, Spans | None]]) -> PlacedChunks:
        """Chunks of each text, with the place of each.

        Args:
            texts: Text and the spans of its words, or None for the word rule. A text whose words
                are given is one chunk.
        """
        counts: list[int] = []
        starts: list[int] = []
        pieces: list[str] = []
        whole: dict[int, Chunk] = {}
        for text, spans in texts:
            text = replace_surrogates(text)
            if spans is None:
                of_text = self._pieces(text, starts)
                pieces += of_text
                counts.append(len(of_text))
            else:
                if len(spans):
                    whole[len(pieces)] = self._whole(text, spans)
                    pieces.append("")
                    starts.append(0)
                counts.append(min(1, len(spans)))
        return PlacedChunks(counts, starts, self._chunks(pieces, whole))

    def _pieces(self, text: str, starts: list[int]) -> list[str]:
        """The chunks of a text; the place of each, white space left out, is added to `starts`."""
        if self._looks_back:
            led = [(match.start(), match.group()) for match in _LED.finditer(text)]
            starts += [start + chunk[0].isspace() for start, chunk in led]
            return [chunk for _, chunk in led]
        pieces = text.split()
        place = 0
        places = []
        for piece in pieces:
            places.append(place)
            place += len(piece) + 1
        # Single blanks between chunks and none around them, as in most posts.
        is_plain = place == len(text) + 1
        starts += places if is_plain else [match.start() for match in SOLID.finditer(text)]
        return pieces

    def _chunks(self, pieces: Sequence[str], whole: Mapping[int, Chunk]) -> list[Chunk]:
        """Every chunk that is asked for; those of `whole` are at hand."""
        known = self._known_chunks.values
        # The texts of `whole` stand as "", which is no chunk.
        new = list(dict.fromkeys([piece for piece in pieces if piece and piece not in known]))
        if not new and not whole:
            return [known[piece] for piece in pieces]
        made = dict(zip(new, self._make(new), strict=True)) if new else {}
        self._known_chunks.keep(made)
        return [
            made.get(piece) or (known[piece] if piece else whole[place])
            for place, piece in enumerate(pieces)
        ]

    def _make(self, wanted: Sequence[str]) -> list[Chunk]:
        """Run the word rule and the tokenizer over several chunks at once."""
        led = [chunk if chunk[0].isspace() else f" {chunk}" for chunk in wanted]
        texts, spans = [chunk[1:] for chunk in led], self._spans(led)
        if self._looks_back:
            for place, chunk in enumerate(wanted):
                if not chunk[0].isspace():  # the beginning of a text
                    spans[place] = list(map(tuple, self._split(chunk).tolist()))
        words = iter(
            self._words([t[a:b] for t, pairs in zip(texts, spans, strict=True) for a, b in pairs])
        )
        return [_chunk(pairs, list(islice(words, len(pairs)))) for pairs in spans]

    def _spans(self, led: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Words of chunks that begin with the white space before them; places do not count it."""
        spans = self._split("".join(led))
        ends = np.cumsum([len(chunk) for chunk in led])
        bounds = np.searchsorted(spans[:, 0], ends).tolist()
        flat = spans.tolist()
        words: list[list[tuple[int, int]]] = []
        begin = start = 0
        for chunk, stop, end in zip(led, bounds, ends.tolist(), strict=True):
            start = end - len(chunk) + 1
            words.append([(a - start, b - start) for a, b in flat[begin:stop]])
            begin = stop
        return words

    def _whole(self, text: str, spans: Spans) -> Chunk:
        """A text whose words were given, as one chunk."""
        pairs = [(a, b) for a, b in spans.tolist()]
        return _chunk(pairs, self._words([text[a:b] for a, b in pairs]))

    def _words(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        """Steps of every word that is asked for, at least one each."""
        known = self._known_words.values
        new = {word: self._read_as(word) for word in words if word not in known}
        if not new:
            return [known[word] for word in words]
        unread = [text for text in dict.fromkeys(new.values()) if text not in known]
        ids = dict(zip(unread, self._tokenize(unread), strict=True))
        # What stands for URLs is known as a word of its own.
        new |= zip(unread, unread, strict=True)
        made = {
            word: _steps(ids.get(text) or known[text][::2], word_shape(word))
            for word, text in new.items()
        }
        self._known_words.keep(made)
        return [made.get(word) or known[word] for word in words]

    def _read_as(self, word: str) -> str:
        is_url = word[:8].lower().startswith(URL_PREFIXES)
        return self._url_text if is_url and self._url_text is not None else word

    def _tokenize(self, words: Sequence[str]) -> list[tuple[int, ...]]:
        ids, counts = self._encode(words)[:2]
        ends = list(accumulate(counts))
        return [
            tuple(ids[end - count : end][: self._limit]) or (self._unk_id,)
            for end, count in zip(ends, counts, strict=True)
        ]

    def _encode(self, words: Sequence[str]) -> tuple[list[int], list[int], Any]:
        """Token ids one after another, how many each word gave, and the encoding of them all."""
        if not words:
            return [], [], None
        (encoding,) = self._tokenizer.encode_batch(
            [words], is_pretokenized=True, add_special_tokens=False
        )
        counts = np.bincount(np.array(encoding.word_ids, np.int64), minlength=len(words))
        return encoding.ids, counts.tolist(), encoding

    def offsets(self, text: str, spans: Spans) -> Spans:
        """Characters of each subword of a text's words, shape (T, 2).

        Args:
            text: The text.
            spans: Its words.
        """
        text = replace_surrogates(text)
        words = [text[a:b] for a, b in spans.tolist()]
        read_as = [self._read_as(word) for word in words]
        _, counts, encoding = self._encode(read_as)
        places = encoding.offsets if counts else []
        offsets: list[tuple[int, int]] = []
        begin = 0
        for (start, end), word, other, count in zip(
            spans.tolist(), words, read_as, counts, strict=True
        ):
            kept = min(count, self._limit)
            if other is word and count:
                offsets += [
                    (start + min(a, len(word)), start + min(b, len(word)))
                    for a, b in places[begin : begin + kept]
                ]
            else:
                # What stands for another text, or for nothing, covers the whole word.
                offsets += [(start, end)] * max(1, kept)
            begin += count
        return np.array(offsets, np.int32).reshape(-1, 2)


def _steps(ids: Sequence[int], shape: int) -> tuple[int, ...]:
    """Steps of a word, as in `Chunk`."""
    return (ids[0], shape) if len(ids) == 1 else tuple(chain(*[(each, shape) for each in ids]))


def _chunk(spans: Sequence[tuple[int, int]], steps: Sequence[tuple[int, ...]]) -> Chunk:
    """A chunk of words with their steps."""
    if len(spans) == 1:
        return Chunk((*spans[0], 0, len(steps[0]) // 2 - 1), steps[0])
    words: list[int] = []
    first = 0
    for span, of_word in zip(spans, steps, strict=True):
        stop = first + len(of_word) // 2
        words += (*span, first, stop - 1)
        first = stop
    return Chunk(tuple(words), tuple(chain.from_iterable(steps)))
