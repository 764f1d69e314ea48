"""The rule `words-1` as it was first written: an oracle for short texts, quadratic for some."""

import re
import unicodedata
from typing import Any

import numpy as np
import numpy.typing as npt

_EMOJI = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25aa-\u27bf"
    "\u2934\u2935\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
    "[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]*"
)
_LETTER = "[^\\W\\d_]"
_ALNUM = "(?:[^\\W_]|[\u0300-\u036f])"
_APOSTROPHE = "['\u2019]"
_HYPHEN = "[-\u2010\u2011&]"
_PROTECTED = re.compile(
    "|".join(
        (
            r"(?:https?://|(?<!\w)www\.)[^\s<>\"]*[^\s<>\"'.,;:!?()\[\]{}\u2026]",
            r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{1,63}",
            r"(?<!\w)@\w++",
            r"(?<![\w&])[#\uff03]\w++",
            "[\U0001f1e6-\U0001f1ff]{2}",
            "[0-9#*]\ufe0f?\u20e3",
            f"{_EMOJI}(?:\u200d{_EMOJI})*+",
            "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]",
            rf"(?<!\w)(?:{_LETTER}\.)++(?:{_LETTER}(?!\w)|(?<=\w\.\w\.))",
            r"(?<!\w)\d++(?:[.,:/]\d++)++(?!\w)",
            # \1 is absent: the lookahead refuses "'s" at a word's end, which is a possessive.
            rf"(?<!\w){_ALNUM}++"
            rf"(?:(?:{_HYPHEN}|{_APOSTROPHE}(?![sS](?![^\W_])))(?={_ALNUM}){_ALNUM}++)++",
        )
    ),
    re.IGNORECASE,
)
_NO_PRE_TOKENIZER = re.compile(r"[^\W_]+|[^\w\s]|_+")
_SOLID = re.compile(r"\S+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JOINERS = "\u200d\ufe0e\ufe0f"


def replace_surrogates(text: str) -> str:
    """Copy `text` with lone surrogates as U+FFFD: same length, and encodable as UTF-8."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def split_words(text: str, pre_tokenizer: Any) -> npt.NDArray[np.int32]:
    """Cut free text into words by the rule of this module.

    Args:
        text: Any string.
        pre_tokenizer: The `pre_tokenizer` of a `tokenizers.Tokenizer`, or None.

    Returns:
        Character spans of the words in order, end exclusive, shape (N, 2).
    """
    text = replace_surrogates(text)
    protected: list[tuple[int, int]] = []

    def blank(match: re.Match[str]) -> str:
        protected.append(match.span())
        return " " * (match.end() - match.start())

    rest = _PROTECTED.sub(blank, text)
    spans = sorted(protected + _cut(rest, pre_tokenizer))
    return np.array(_visible(text, _rejoin(text, spans)), np.int32).reshape(-1, 2)


def _cut(text: str, pre_tokenizer: Any) -> list[tuple[int, int]]:
    """Pieces of the unprotected text; white space always separates."""
    if pre_tokenizer is None:
        return [match.span() for match in _NO_PRE_TOKENIZER.finditer(text)]
    pieces: list[tuple[int, int]] = []
    for _, (start, end) in pre_tokenizer.pre_tokenize_str(text):
        # A byte-level pre-tokenizer keeps the blank before a word and may repeat an offset.
        start = max(start, pieces[-1][1] if pieces else 0)
        pieces.extend(match.span() for match in _SOLID.finditer(text, start, end))
    return pieces


def _rejoin(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Undo cuts inside a character as readers see it."""
    if text.isascii():
        return spans
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start and _continues(text[start], text[start - 1]):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _continues(char: str, before: str) -> bool:
    return char in _JOINERS or before == "\u200d" or unicodedata.category(char)[0] == "M"


def _visible(text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    # Categories C and Z are what never shows; isprintable() settles nearly every word at once.
    return [
        (start, end)
        for start, end in spans
        if text[start:end].isprintable()
        or any(unicodedata.category(char)[0] not in "CZ" for char in text[start:end])
    ]
