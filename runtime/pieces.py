"""Pieces of a text as a tokenizer's pre-tokenizer cuts it, and at white space in any case.

Time is linear in the text, and other threads run meanwhile: `pre_tokenize_str` of the library would
keep them all waiting for its whole call.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np

Span = tuple[int, int]
Cut = Callable[[str], list[Span]]

SOLID = re.compile(r"\S+")
_PLAIN = re.compile(r"[^\W_]+|[^\w\s]|_+")
_CODE_POINTS = 0x110000
# Characters to ask for in one call, which holds Python's lock.
_LEARN = 1000


def piece_cutter(pre_tokenizer: Any) -> Cut:
    """A function from a text without lone surrogates to its pieces, in order.

    Args:
        pre_tokenizer: The `pre_tokenizer` of a `tokenizers.Tokenizer`, or None for words, single
            signs and runs of `_`.
    """
    if pre_tokenizer is None:
        return lambda text: [match.span() for match in _PLAIN.finditer(text)]
    return (_LibraryCutter if looks_back(pre_tokenizer) else _CharacterCutter)(pre_tokenizer)


def looks_back(pre_tokenizer: Any) -> bool:
    """Whether the white space before a word may decide how the word is cut."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    return pre_tokenizer is not None and not isinstance(pre_tokenizer, BertPreTokenizer)


class _CharacterCutter:
    """BERT's: each character alone decides, and is asked for once."""

    # What a character does: stays with its neighbours, is a piece, separates.
    _STAY, _ALONE, _APART = b"a! "
    _PIECE = re.compile(b"a+|!")

    def __init__(self, pre_tokenizer: Any) -> None:
        self._pre_tokenizer = pre_tokenizer
        self._class_of = np.zeros(_CODE_POINTS, np.uint8)

    def __call__(self, text: str) -> list[Span]:
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        classes = self._class_of[codes]
        if not classes.all():
            self._learn(sorted(set(codes[classes == 0].tolist())))
            classes = self._class_of[codes]
        return [match.span() for match in self._PIECE.finditer(classes.tobytes())]

    def _learn(self, codes: list[int]) -> None:
        """See what becomes of characters between letters."""
        for begin in range(0, len(codes), _LEARN):
            part = codes[begin : begin + _LEARN]
            classes = np.full(len(part), self._APART, np.uint8)
            text = f"a{'a'.join(map(chr, part))}a"
            for _, (start, end) in self._pre_tokenizer.pre_tokenize_str(text):
                # The characters in question are at the odd places.
                is_alone = end - start == 1 and start % 2
                classes[start // 2 : end // 2] = self._ALONE if is_alone else self._STAY
            classes[[chr(code).isspace() for code in part]] = self._APART
            self._class_of[part] = classes


class _LibraryCutter:
    """Any other, as a tokenizer whose tokens are the pieces: that call lets other threads run."""

    def __init__(self, pre_tokenizer: Any) -> None:
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        self._tokenizer = Tokenizer(WordLevel({"piece": 0}, unk_token="piece"))
        self._tokenizer.pre_tokenizer = pre_tokenizer

    def __call__(self, text: str) -> list[Span]:
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        runs = [match.span() for match in SOLID.finditer(text)]
        runs.append((len(text), len(text) + 1))
        pieces: list[Span] = []
        place = last = 0
        first, stop = runs[0]
        for start, end in encoding.offsets:
            # A byte-level pre-tokenizer keeps the blank before a word and may repeat an offset.
            if start < last:
                start = last
            while start < end:
                while stop <= start:
                    place += 1
                    first, stop = runs[place]
                if first >= end:
                    break
                last = min(end, stop)
                pieces.append((max(start, first), last))
                start = last
        return pieces
