import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from amlr.runtime.words import split_words
from encoders import byte_level_encoder, wordpiece_encoder

BERT = pre_tokenizers.BertPreTokenizer()
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=True)


def words(text: str, pre_tokenizer: object = BERT) -> list[str]:
    return [text[start:end] for start, end in split_words(text, pre_tokenizer).tolist()]


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
    "emoji", ["😂", "👨‍👩‍👧", "👍🏽", "🇫🇷", "☀️", "1️⃣", "🏴\U000e0067\U000e0062\U000e007f", "❤️‍🔥"]
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
    pre_tokenizer = {"bert": BERT, "bytes": BYTES, "none": None}[name]
    spans = split_words(text, pre_tokenizer).tolist()
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
    assert len(split_words(text, BERT)) > 0


def test_encoders_use_the_rule() -> None:
    text = "Don't @me"
    for encoder in (wordpiece_encoder(), byte_level_encoder()):
        assert encoder.split(text).tolist() == [[0, 5], [6, 9]]
