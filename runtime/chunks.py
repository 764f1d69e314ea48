"""Words and subwords of text by chunks, the runs of characters between white space.

No word rule looks past white space, and every word is tokenized on its own, so a chunk always gives
the same words and subwords, and most chunks of a post were seen before. What a chunk gave is kept;
the chunks of a call that are new go through the word rule and the tokenizer together. Where the
pre-tokenizer looks at the character before a chunk (`'s` is one piece after a line's end and two
after a blank in GPT-2's), a chunk is known together with that character.
"""

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from amlr.runtime.pieces import SOLID
from amlr.runtime.words import replace_surrogates

# A chunk and the white space before it.
_LED = re.compile(r"\s?\S+")
Spans = npt.NDArray[np.int32]
Tokens = tuple[list[int], list[tuple[int, int]]]
URL_PREFIXES = ("http://", "https://", "www.")
# Some 700 bytes a chunk.
MOST_CHUNKS, LONGEST_CHUNK = 20_000, 64


class Chunk(NamedTuple):
    """What one chunk gives; places count from its first character. N words, T subwords.

    Attributes:
        spans: Start and end of each word, 2 N.
        counts: Subwords of each word, N.
        shapes: Shape class of each word, N.
        ids: Token ids, T.
        offsets: Start and end of each subword, 2 T.
    """

    spans: tuple[int, ...]
    counts: tuple[int, ...]
    shapes: tuple[int, ...]
    ids: tuple[int, ...]
    offsets: tuple[int, ...]


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
        self._known: dict[str, Chunk] = {}
        self._lock = threading.Lock()

    def read(self, texts: Sequence[tuple[str, Spans | None]]) -> list[list[tuple[int, Chunk]]]:
        """Chunks of each text, with the place of each.

        Args:
            texts: Text and the spans of its words, or None for the word rule.
        """
        pattern = _LED if self._looks_back else SOLID
        placed = [
            [(m.start(), m.group()) for m in pattern.finditer(replace_surrogates(text))]
            if spans is None
            else []
            for text, spans in texts
        ]
        chunks = self._chunks({chunk for of_text in placed for _, chunk in of_text})
        return [
            [(start + chunk[0].isspace(), chunks[chunk]) for start, chunk in of_text]
            if spans is None
            else self._whole(text, spans)
            for of_text, (text, spans) in zip(placed, texts, strict=True)
        ]

    def _chunks(self, wanted: set[str]) -> dict[str, Chunk]:
        """Every chunk that is asked for."""
        known = self._known
        chunks = {text: known[text] for text in wanted if text in known}
        new = sorted(wanted - chunks.keys())
        if not new:
            return chunks
        made = dict(zip(new, self._make(new), strict=True))
        with self._lock:
            # Rebuilt from what is in use now: simpler than an order of use, and hardly slower.
            if len(known) + len(made) > MOST_CHUNKS:
                self._known = known = {}
            for text, chunk in made.items():
                if len(text) <= LONGEST_CHUNK and len(known) < MOST_CHUNKS:
                    known[text] = chunk
        return chunks | made

    def _make(self, wanted: Sequence[str]) -> list[Chunk]:
        """Run the word rule and the tokenizer over several chunks at once."""
        led = [chunk if chunk[0].isspace() else f" {chunk}" for chunk in wanted]
        texts, words = [chunk[1:] for chunk in led], self._words(led)
        if self._looks_back:
            for place, chunk in enumerate(wanted):
                if not chunk[0].isspace():  # the beginning of a text
                    words[place] = list(map(tuple, self._split(chunk).tolist()))
        tokens = self._tokenize(
            [text[a:b] for text, of_chunk in zip(texts, words, strict=True) for a, b in of_chunk]
        )
        return [
            _chunk(text, of_chunk, [next(tokens) for _ in of_chunk])
            for text, of_chunk in zip(texts, words, strict=True)
        ]

    def _words(self, led: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Words of chunks that begin with the white space before them; places do not count it."""
        spans = self._split("".join(led))
        ends = np.cumsum([len(chunk) for chunk in led])
        bounds = np.searchsorted(spans[:, 0], ends).tolist()
        words: list[list[tuple[int, int]]] = []
        begin = 0
        for chunk, stop, end in zip(led, bounds, ends.tolist(), strict=True):
            start = end - len(chunk) + 1
            words.append([(a - start, b - start) for a, b in spans[begin:stop].tolist()])
            begin = stop
        return words

    def _whole(self, text: str, spans: Spans) -> list[tuple[int, Chunk]]:
        """A text whose words were given, as one chunk."""
        text = replace_surrogates(text)
        words = [(a, b) for a, b in spans.tolist()]
        if not words:
            return []
        return [(0, _chunk(text, words, list(self._tokenize([text[a:b] for a, b in words]))))]

    def _tokenize(self, words: Sequence[str]) -> Iterator[Tokens]:
        """Ids and offsets within the word, for each word; at least one subword each."""
        urls = [
            self._url_text is not None and word[:8].lower().startswith(URL_PREFIXES)
            for word in words
        ]
        replaced = [self._url_text if u else w for w, u in zip(words, urls, strict=True)]
        if not words:
            return iter(())
        (encoding,) = self._tokenizer.encode_batch(
            [replaced], is_pretokenized=True, add_special_tokens=False
        )
        counts = np.bincount(np.array(encoding.word_ids, np.int64), minlength=len(words)).tolist()
        return _tokens(words, urls, counts, encoding, self._unk_id, self._limit)


def _tokens(
    words: Sequence[str],
    urls: Sequence[bool],
    counts: Sequence[int],
    encoding: Any,
    unk_id: int,
    limit: int,
) -> Iterator[Tokens]:
    ids, offsets, begin = encoding.ids, encoding.offsets, 0
    for word, is_url, count in zip(words, urls, counts, strict=True):
        end = begin + min(count, limit)
        of_word = ids[begin:end] or [unk_id]
        # What stands for another text, or for nothing, covers the whole word.
        whole = is_url or not count
        places = [(0, len(word))] * len(of_word) if whole else offsets[begin:end]
        yield of_word, [(min(a, len(word)), min(b, len(word))) for a, b in places]
        begin += count


def _chunk(
    text: str,
    words: Sequence[tuple[int, int]],
    tokens: Sequence[Tokens],
) -> Chunk:
    return Chunk(
        spans=tuple(chain.from_iterable(words)),
        counts=tuple(len(ids) for ids, _ in tokens),
        shapes=tuple(word_shape(text[start:end]) for start, end in words),
        ids=tuple(chain.from_iterable(ids for ids, _ in tokens)),
        offsets=tuple(
            place + start
            for (start, _), (_, offsets) in zip(words, tokens, strict=True)
            for pair in offsets
            for place in pair
        ),
    )
