"""The word rules: how free text is cut into words when the caller brings none.

Only whole words can be entities, so the rule decides what an answer can look like. `words-1`, in
order:

1. Protected whole: URLs (without trailing punctuation), e-mail addresses, `@user`, `#tag`, one
   emoji sequence each (flags, keycaps, skin tones, joined families), dotted abbreviations
   (`U.S.`), numbers (`3,000.50`, `10:30`, `9/11`), and letters or digits joined by an inner
   hyphen, apostrophe or ampersand (`post-Katrina`, `don't`, `AT&T`). A CJK ideograph is a word.
2. A final possessive is *not* joined (`Love's` -> `Love`, `'`, `s`): the owner must stay reachable.
3. All else is cut by the bundle tokenizer's own pre-tokenizer, and at white space in any case.
4. A cut never falls before a combining mark, a joiner or a variation selector.
5. Pieces with nothing visible in them (control characters, lone joiners) are no words.

`words-2` is `words-1`, and no word begins or ends with an invisible character (categories Cf and
Cc: marks of text direction, zero-width spaces, NUL). Inside a word they stay.

The time is linear in the length of any text. Corpora pass their own word spans and never come here.
"""

import re
import unicodedata
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.runtime.pieces import SOLID, Span, looks_back, piece_cutter

WORDS_1, WORDS_2 = "words-1", "words-2"
WORD_RULES = (WORDS_1, WORDS_2)
Characters = frozenset[str]

_EMOJI_BASE = (
    "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25aa-\u27bf"
    "\u2934\u2935\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
)
_TAGS = "\U000e0020-\U000e007f"
_EMOJI = f"[{_EMOJI_BASE}][\ufe0e\ufe0f\U0001f3fb-\U0001f3ff{_TAGS}]*"
_LETTER = "[^\\W\\d_]"
_MARK = "[\u0300-\u036f]"
_ALNUM = f"(?:[^\\W_]|{_MARK})"
_APOSTROPHE = "['\u2019]"
_HYPHEN = "[-\u2010\u2011&]"
_URL_REST = r"[^\s<>\"]*[^\s<>\"'.,;:!?()\[\]{}\u2026]"
# The lookahead refuses "'s" at a word's end, which is a possessive.
_JOINED = rf"(?:(?:{_HYPHEN}|{_APOSTROPHE}(?![sS](?![^\W_])))(?={_ALNUM}){_ALNUM}++)++"
_NUMBERS = r"\d++(?:[.,:/]\d++)++"
_ABBREVIATION = rf"(?:{_LETTER}\.)++(?:{_LETTER}(?!\w)|(?<=\w\.\w\.))"

# Possessive quantifiers (++) never back up into a long run. Two alternatives could still read the
# same long run again from each place inside it, always in vain: from after each mark of a run of
# letters and marks, and from each number of a list. Where they begin inside such a run and fail,
# they match all the same, as `run` and as `list`; the rest of it is then searched without them.
_RUN = rf"(?<!{_MARK}){_ALNUM}++{_JOINED}|(?<={_MARK}){_ALNUM}++(?:{_JOINED}|(?P<run>))"
_LIST = rf"(?<!\d[.,:/]){_NUMBERS}(?!\w)|(?<=\d[.,:/]){_NUMBERS}(?:(?!\w)|(?P<list>))"


def _protected(*last: str, stop: str = "") -> re.Pattern[str]:
    """A pattern of what is kept whole.

    Args:
        last: Alternatives after all others, only where no word character stands before.
        stop: Where the search is to end.
    """
    first = "|".join(
        (
            rf"www\.{_URL_REST}",
            r"(?<![.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}\w{1,63}",
            r"@\w++",
            r"(?<!&)[#\uff03]\w++",
        )
    )
    return re.compile(
        "|".join(
            (
                rf"https?://{_URL_REST}",
                rf"(?<!\w)(?:{first})",
                "[\U0001f1e6-\U0001f1ff]{2}",
                "[0-9#*]\ufe0f?\u20e3",
                f"{_EMOJI}(?:\u200d{_EMOJI})*+",
                "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]",
                rf"(?<!\w)(?:{'|'.join(last)})",
                *([f"(?P<stop>{stop})"] if stop else []),
            )
        ),
        re.IGNORECASE,
    )


_ANYWHERE = _protected(_ABBREVIATION, _LIST, _RUN)
_IN_RUN = _protected(_ABBREVIATION, _LIST, stop=rf"[\W_](?<!{_MARK})")
_IN_LIST = _protected(_ABBREVIATION, rf"{_ALNUM}++{_JOINED}", stop=r"[^\d.,:/]")
_SPACE = re.compile(r"\s")
_SURROGATE = re.compile("[\ud800-\udfff]")
_JOINERS = "\u200d\ufe0e\ufe0f"
# Tags are invisible, but after an emoji they say which flag it is.
_EMOJI_TAGS = re.compile(f"(?<=[{_EMOJI_BASE}\ufe0e\ufe0f])[{_TAGS}]+")
_TAG_CHARS = frozenset(map(chr, range(0xE0020, 0xE0080)))
_NONE: Characters = frozenset()
# The search holds Python's lock: a long text is searched in parts of about so many characters.
_PART = 8192


def replace_surrogates(text: str) -> str:
    """Copy `text` with lone surrogates as U+FFFD: same length, and encodable as UTF-8."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


class WordSplitter:
    """Cuts free text into words. Safe to share between threads."""

    def __init__(self, rule: str, pre_tokenizer: Any) -> None:
        """Choose how to cut.

        Args:
            rule: One of `WORD_RULES`.
            pre_tokenizer: The `pre_tokenizer` of a `tokenizers.Tokenizer`, or None.
        """
        self._trims = rule == WORDS_2
        self._cut = piece_cutter(pre_tokenizer)
        # Whether words depend on the white space before them.
        self.looks_back = looks_back(pre_tokenizer)

    def split(self, text: str) -> npt.NDArray[np.int32]:
        """Words of a text.

        Args:
            text: Any string.

        Returns:
            Character spans of the words in order, end exclusive, shape (N, 2).
        """
        text = replace_surrogates(text)
        joining, hidden, invisible = _odd_characters(text)
        if self._trims and invisible:
            text = _blank_edges(text, invisible)
        words = _find_protected(text)
        words += self._cut(_blanked(text, words))
        words.sort()
        if joining:
            words = _rejoin(text, words, joining)
        if hidden:
            words = _visible(text, words, hidden)
        if self._trims and invisible:
            words = _trim(text, words, invisible)
        return np.fromiter(chain.from_iterable(words), np.int32, 2 * len(words)).reshape(-1, 2)


def _odd_characters(text: str) -> tuple[Characters, Characters, Characters]:
    """Those of a text that rules 4 and 5, and `words-2`, look for; white space is none.

    Returns:
        Marks and joiners, which continue a word; all that never shows (categories C and Z); and of
        these the control and format characters, which no word may begin or end with.
    """
    if text.isascii() and text.isprintable():
        return _NONE, _NONE, _NONE
    kinds = [(char, unicodedata.category(char)) for char in set(text) if not char.isspace()]
    joining = frozenset(char for char, kind in kinds if kind[0] == "M" or char in _JOINERS)
    hidden = frozenset(char for char, kind in kinds if kind[0] in "CZ")
    return joining, hidden, frozenset(char for char, kind in kinds if kind in ("Cc", "Cf"))


def _find_protected(text: str) -> list[Span]:
    """Spans to keep whole, in order."""
    spans: list[Span] = []
    place = run_end = list_end = part_end = 0
    while place < len(text):
        if part_end <= place:
            # Nothing protected holds white space, nor looks past it.
            blank = _SPACE.search(text, place + _PART)
            part_end = blank.start() if blank else len(text)
        pattern = _IN_RUN if place < run_end else _IN_LIST if place < list_end else _ANYWHERE
        match = pattern.search(text, place, part_end)
        kind = None if match is None else match.lastgroup
        if match is None:
            place = part_end
        elif kind is None:
            spans.append(match.span())
            place = match.end()
        else:
            place = match.start()
            if kind == "run":
                run_end = match.end()
            elif kind == "list":
                run_end, list_end = 0, match.end()
    return spans


def _blanked(text: str, spans: list[Span]) -> str:
    """Copy a text with blanks for some spans."""
    parts, place = [], 0
    for start, end in spans:
        parts += [text[place:start], " " * (end - start)]
        place = end
    return "".join([*parts, text[place:]])


def _rejoin(text: str, spans: list[Span], joining: Characters) -> list[Span]:
    """Undo cuts inside a character as readers see it."""
    joined: list[Span] = []
    first, last = -1, -1
    for start, end in spans:
        if start == last and (text[start] in joining or text[start - 1] == "\u200d"):
            joined[-1] = (first, end)
        else:
            joined.append((start, end))
            first = start
        last = end
    return joined


def _visible(text: str, spans: list[Span], hidden: Characters) -> list[Span]:
    return [
        (start, end)
        for start, end in spans
        if text[start] not in hidden or not hidden.issuperset(text[start:end])
    ]


def _blank_edges(text: str, invisible: Characters) -> str:
    """Copy a text with blanks for invisible characters beside white space.

    So nothing that is decided there depends on them: `end.` and a mark of direction is cut as
    `end.` is.
    """
    # A tag may belong to the emoji before it.
    chars = "".join(invisible - _TAG_CHARS)

    def strip(match: re.Match[str]) -> str:
        right = match[0].rstrip(chars)
        blanks = " " * (len(match[0]) - len(right))
        return right.lstrip(chars).rjust(len(right)) + blanks

    return SOLID.sub(strip, text)


def _trim(text: str, spans: list[Span], invisible: Characters) -> list[Span]:
    """Leave invisible characters at both ends of visible words out of them."""
    chars = "".join(invisible)
    trimmed: list[Span] = []
    for start, end in spans:
        if text[start] in invisible or text[end - 1] in invisible:
            word = text[start:end]
            right = start + len(word.rstrip(chars))
            tags = _EMOJI_TAGS.match(text, right, end)
            start, end = end - len(word.lstrip(chars)), tags.end() if tags else right
        trimmed.append((start, end))
    return trimmed
