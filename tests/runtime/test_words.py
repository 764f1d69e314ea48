import itertools
import random
import time
import unicodedata

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from amlr.runtime.pieces import piece_cutter
from amlr.runtime.text import TextSpec, _window_words
from amlr.runtime.words import WORDS_1, WORDS_2, WordSplitter
from encoders import byte_level_encoder, wordpiece_encoder
from first_words import split_words

BERT = pre_tokenizers.BertPreTokenizer()
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=True)
PRE_TOKENIZERS = {
    "bert": BERT,
    "bytes": BYTES,
    "none": None,
    "metaspace": pre_tokenizers.Metaspace(),
    "signs": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    ),
}
SPLITTERS = {
    (rule, name): WordSplitter(rule, pre_tokenizer)
    for rule in (WORDS_1, WORDS_2)
    for name, pre_tokenizer in PRE_TOKENIZERS.items()
}
# One of each class that the rule tells apart, and the parts of what it protects.
CLASSES = (
    "a", "s", "h", "1", "_", ".", ",", ":", "/", "-", "'", "&", "@", "#", "+", "\u2019", "\uff03",
    "\u0301", "\u0345", "\u03b9", "\u0903", "\u094d", "\u0915", "\u0645", "\u2139", "\u24dc",
    "\u2460", "\u00b2", "\u017f", "\u6771", "\U0001f602", "\U0001f3fd", "\U0001f1eb", "\u200d",
    "\ufe0f", "\u20e3", "\U000e0067", "\u200b", "\u200f", "\ufeff", "\0", " ", "\n", "\u00a0",
    "\u2028", "\ud83d", "\u2026", "http://", "https://", "www.", "a@b.c", "U.S.", "1.1a", "a-a",
)  # fmt: skip
# What repeated units are made of.
UNITS = tuple(
    c for c in CLASSES if c not in ("h", ":", "\u0345", "\u03b9", "\u0903", "\ud83d", "\u00a0")
)
pieces = st.lists(st.sampled_from(CLASSES) | st.characters(), max_size=25).map("".join)


def words(text: str, pre_tokenizer: object = BERT, rule: str = WORDS_1) -> list[str]:
    splitter = WordSplitter(rule, pre_tokenizer)
    return [text[start:end] for start, end in splitter.split(text).tolist()]


@pytest.mark.parametrize("pre_tokenizer", [BERT, BYTES, None], ids=["bert", "bytes", "none"])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop", "Don't|stop"),
        ("post-Katrina AT&T O'Neill", "post-Katrina|AT&T|O'Neill"),
        ("Love's team", "Love|'|s|team"),
        ("LOVE'S", "LOVE|'|S"),
        ("a rock'n'roll", "a|rock'n'roll"),
        ("the U.S. Army, p.m.", "the|U.S.|Army|,|p.m."),
        ("J. Cole", "J|.|Cole"),
        ("3,000.50 at 10:30 on 9/11.", "3,000.50|at|10:30|on|9/11|."),
        ("@kev_in's #NewYork!", "@kev_in|'|s|#NewYork|!"),
        ("see https://t.co/aB1?x=2, ok", "see|https://t.co/aB1?x=2|,|ok"),
        ("(www.example.com).", "(|www.example.com|)|."),
        ("mail bob.x@example.co.uk now", "mail|bob.x@example.co.uk|now"),
        ("&#39; C# &amp;", "&|#|39|;|C|#|&|amp|;"),
        ("東京 tower", "東|京|tower"),
        ("  \t\n ", ""),
        ("", ""),
    ],
)
def test_rule(text: str, expected: str, pre_tokenizer: object) -> None:
    found = words(text, pre_tokenizer)
    if pre_tokenizer is BYTES:  # it keeps runs of signs together
        found = list("".join(found))
        expected = "|".join(expected.replace("|", ""))
    assert "|".join(found) == expected


@pytest.mark.parametrize(
    "emoji",
    ["😂", "👨\u200d👩\u200d👧", "👍🏽", "🇫🇷", "☀️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "❤️‍🔥"],
)
@pytest.mark.parametrize("pre_tokenizer", [BERT, BYTES, None], ids=["bert", "bytes", "none"])
def test_emoji_is_one_word(emoji: str, pre_tokenizer: object) -> None:
    assert words(f"go{emoji}{emoji} x", pre_tokenizer) == ["go", emoji, emoji, "x"]


def test_marks_and_invisible_characters() -> None:
    assert words("Cafe\u0301-Bar e\u0301te\u0301") == ["Cafe\u0301-Bar", "e\u0301te\u0301"]
    assert words("#हिन्दी में") == ["#हिन्दी", "में"]
    assert words("a \x00\x01 \u200b b\x00c") == ["a", "b\x00c"]
    assert words("مرحبا من القاهرة") == ["مرحبا", "من", "القاهرة"]


def test_lone_surrogates_are_words_like_others() -> None:
    assert words("a\ud83d b") == ["a\ud83d", "b"]


@example("ab😂\u0301c", "bert")
@example("\u0301", "bert")
@example(" \u0301a", "bytes")
@example("a\u200d\u200db", "none")
@example("\U0001f1e6" * 5, "bytes")
@given(st.text(max_size=60), st.sampled_from(["bert", "bytes", "none"]))
def test_spans_are_ordered_and_keep_every_visible_character(text: str, name: str) -> None:
    spans = SPLITTERS[WORDS_1, name].split(text).tolist()
    end = 0
    for start, stop in spans:
        assert end <= start < stop <= len(text)
        end = stop
    covered = {i for start, stop in spans for i in range(start, stop)}
    for i, char in enumerate(text):
        if unicodedata.category(char)[0] not in "CZ":
            assert i in covered or unicodedata.category(char)[0] == "M"
        if char.isspace():
            assert i not in covered


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "a-" * 50_000, "1." * 50_000, "a@" * 50_000, "http://" + "." * 99_000]
)
def test_hostile_runs_finish(text: str) -> None:
    # Quadratic matching would take minutes here, and so would show.
    assert len(SPLITTERS[WORDS_1, "bert"].split(text)) > 0


@settings(max_examples=400)
@given(pieces, st.integers(1, 3))
def test_first_rule_gives_the_spans_it_always_gave(text: str, times: int) -> None:
    for name, pre_tokenizer in PRE_TOKENIZERS.items():
        found = SPLITTERS[WORDS_1, name].split(text * times).tolist()
        assert found == split_words(text * times, pre_tokenizer).tolist(), name


def test_first_rule_gives_the_same_spans_on_repeated_units() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        text = "".join(rng.choices(rng.sample(CLASSES, 4), k=40))
        assert (
            SPLITTERS[WORDS_1, "bert"].split(text).tolist() == split_words(text, BERT).tolist()
        ), text


def test_every_assigned_character_is_cut_as_the_library_cuts_it() -> None:
    cut = piece_cutter(BERT)
    for begin in (*range(0, 0x20000, 1024), 0xE0000):
        chars = [chr(c) for c in range(begin, begin + 1024) if not 0xD800 <= c < 0xE000]
        # White space is none of its business: there the text is cut in any case.
        text = "".join(f"a{char}" for char in chars if not char.isspace())
        assert cut(text) == [offsets for _, offsets in BERT.pre_tokenize_str(text)], hex(begin)


def seconds(splitter: WordSplitter, text: str, times: int) -> float:
    """CPU time of this thread, the best of some tries."""
    best = float("inf")
    for _ in range(times):
        start = time.thread_time()
        splitter.split(text)
        best = min(best, time.thread_time() - start)
    return best


def test_time_grows_with_the_length_for_any_repeated_unit() -> None:
    rng = random.Random(1)
    units = [*UNITS, *map("".join, rng.sample(list(itertools.product(UNITS, repeat=2)), 300))]
    units += map("".join, rng.sample(list(itertools.product(UNITS, repeat=3)), 150))
    units += ["a\u0301", "1.", "\u0301a\u6771", "1,2a@", "b/a-http://", "a\u03011.1", "\u03011.1a"]
    splitter = SPLITTERS[WORDS_2, "bert"]
    for unit in units:
        short, long = unit * (600 // len(unit)), unit * (4800 // len(unit))
        for times in (1, 3, 10):
            growth = seconds(splitter, long, times) / seconds(splitter, short, times)
            # Eight times the text takes about eight times as long; a quadratic rule 64 times.
            if growth < 20:
                break
        else:
            pytest.fail(f"{unit!r} repeated: {growth:.0f} times as long for 8 times the text")


def test_windows_take_linear_time() -> None:
    growth = 0.0
    for _ in range(3):
        used = []
        for count in (30_000, 480_000):
            tokens = np.ones(count, np.int64)
            start = time.thread_time()
            _window_words(tokens, TextSpec())
            used.append(time.thread_time() - start)
        growth = used[1] / used[0]
        if growth < 50:
            return
    # 16 times the words; quadratic would be 256 times.
    pytest.fail(f"{growth:.0f} times as long for 16 times the words")


@pytest.mark.parametrize("unit", ["a ", "a\u0301", "\u6771", "a" * 99 + " ", "http://a "])
def test_tokens_and_offsets_take_linear_time(unit: str) -> None:
    for encoder in (wordpiece_encoder(), byte_level_encoder()):
        growth = 0.0
        for _ in range(3):
            used = []
            for size in (2_000, 16_000):
                post = encoder.prepare((unit * size)[:size])
                start = time.thread_time()
                encoder.encode_prepared([post])
                used.append(time.thread_time() - start)
            growth = used[1] / used[0]
            if growth < 24:
                break
        # 8 times the text; quadratic would be 64 times.
        assert growth < 24


INVISIBLE = ("\ufeff", "\u200b", "\u200f", "\u2068", "\0", "\u00ad", "\u200c", "\u200d", "\x7f")


@pytest.mark.parametrize("char", INVISIBLE)
@pytest.mark.parametrize("name", ["bert", "bytes", "none"])
def test_second_rule_leaves_invisible_edges_out(char: str, name: str) -> None:
    texts = ("Lena Nowak moved to Paris today", "see https://t.co/x. now", "the U.S. , @me #x 1.5")
    for plain in texts:
        expected = [plain[s:e] for s, e in SPLITTERS[WORDS_2, name].split(plain).tolist()]
        assert expected == [plain[s:e] for s, e in SPLITTERS[WORDS_1, name].split(plain).tolist()]
        dirty = " ".join(f"{char}{char}{word}{char}" for word in plain.split())
        found = [dirty[s:e] for s, e in SPLITTERS[WORDS_2, name].split(dirty).tolist()]
        assert found == expected
    if char != "\u200d":  # which never ends a word before a visible character
        found = words(f"(Paris{char}, {char}'s)", BERT, WORDS_2)
        assert found == ["(", "Paris", ",", "'", "s", ")"]


@pytest.mark.parametrize("text", ["👨\u200d👩\u200d👧", "می‌خ", "co­op", "🏴󠁧󠁢󠁿"])
def test_second_rule_keeps_what_is_inside(text: str) -> None:
    for around in (text, f"{text} x", f"​{text}​", f"x {text}"):
        assert text in words(around, BERT, WORDS_2)
    assert words("Paris󠁧", BERT, WORDS_2) == ["Paris"]


@given(pieces)
def test_second_rule_cuts_the_same_visible_words(text: str) -> None:
    for name in PRE_TOKENIZERS:
        spans = SPLITTERS[WORDS_2, name].split(text).tolist()
        end = 0
        for start, stop in spans:
            assert end <= start < stop <= len(text)
            end = stop
            for edge in (text[start], text[stop - 1]):
                is_tag = "\U000e0020" <= edge <= "\U000e007f"
                assert is_tag or unicodedata.category(edge) not in ("Cc", "Cf")
        if not any(unicodedata.category(char) in ("Cc", "Cf") for char in text):
            assert spans == SPLITTERS[WORDS_1, name].split(text).tolist()


def test_encoders_use_the_rule() -> None:
    text = "Don't @me"
    for encoder in (wordpiece_encoder(), byte_level_encoder()):
        assert encoder.split(text).tolist() == [[0, 5], [6, 9]]
