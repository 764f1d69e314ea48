import re
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from amlr.errors import InputError
from amlr.runtime import chunks
from amlr.runtime.chunks import word_shape
from amlr.runtime.text import TextEncoder, TextSpec, load_tokenizer
from encoders import byte_level_encoder, wordpiece_encoder
from tiny import tiny_tokenizer

WORDPIECE = wordpiece_encoder()
BYTE_LEVEL = byte_level_encoder()
SMALL = wordpiece_encoder(max_tokens=16, overlap_tokens=6, max_word_tokens=5)


@pytest.mark.parametrize("encoder", [WORDPIECE, BYTE_LEVEL], ids=["wordpiece", "bytes"])
def test_words_subwords_and_offsets(encoder: TextEncoder) -> None:
    text = "in paris, x"
    (encoded,) = encoder.encode([(text, None)])
    (window,) = encoded.windows
    assert encoded.word_spans_n2.tolist() == [[0, 2], [3, 8], [8, 9], [10, 11]]
    assert window.input_ids_t[0] == encoder.cls_id
    assert window.input_ids_t[-1] == encoder.sep_id
    offsets = encoder.token_offsets(encoded)
    assert offsets[0].tolist() == offsets[-1].tolist() == [0, 0]
    for word, (first, last) in enumerate(zip(window.first_n, window.last_n, strict=True)):
        start, end = encoded.word_spans_n2[word]
        assert offsets[first, 0] == start
        assert offsets[last, 1] == end


def test_wordpiece_ids_of_a_known_text() -> None:
    tokenizer = tiny_tokenizer()
    (encoded,) = WORDPIECE.encode([("in Paris xy", None)])
    pieces = ["[CLS]", "in", "paris", "x", "##y", "[SEP]"]
    expected = [tokenizer.token_to_id(piece) for piece in pieces]
    assert encoded.windows[0].input_ids_t.tolist() == expected
    assert encoded.windows[0].shape_ids_t.tolist() == [0, 3, 6, 3, 3, 0]


def test_urls_stand_for_one_text_and_keep_their_characters() -> None:
    text = "x https://t.co/abcdefgh y"
    (encoded,) = WORDPIECE.encode([(text, None)])
    (plain,) = WORDPIECE.encode([("<url>", [(0, 5)])])
    (window,) = encoded.windows
    url = slice(window.first_n[1], window.last_n[1] + 1)
    assert window.input_ids_t[url].tolist() == plain.windows[0].input_ids_t[1:-1].tolist()
    assert {tuple(o) for o in WORDPIECE.token_offsets(encoded)[url].tolist()} == {(2, 23)}
    (kept,) = wordpiece_encoder(url_text=None).encode([(text, None)])
    assert len(kept.windows[0].input_ids_t) > len(window.input_ids_t)


ODD = "aB7 \n\u00a0\u200b\ufeff#@é\u0301東-'’.…😀🏳️🌈\u200d&\t\ud800\u2028\x1c\x85_"
ODD_TEXTS = st.lists(
    st.sampled_from([*ODD, "http://x.y/z", "www.a", "U.S.", "3,000", "'s", "1\ufe0f\u20e3", "  "]),
    max_size=30,
).map("".join)


@pytest.mark.parametrize("make", [wordpiece_encoder, byte_level_encoder])
@settings(deadline=None, max_examples=60)
@given(texts=st.lists(ODD_TEXTS, max_size=4))
@example(texts=["'s 's\n's", "a's\t 's 't", "\n's"])
def test_chunks_that_were_seen_before_give_what_whole_texts_give(
    make: Callable[..., TextEncoder], texts: list[str]
) -> None:
    encoder = make(max_tokens=24, overlap_tokens=6)
    # Words that are given go through the tokenizer together.
    expected = encoder.encode([(text, encoder.split(text)) for text in texts])
    posts = [(text, None) for text in texts]
    for encoded in (encoder.encode(posts), encoder.encode(posts)):
        for one, other in zip(encoded, expected, strict=True):
            assert one.word_spans_n2.tolist() == other.word_spans_n2.tolist()
            assert len(one.windows) == len(other.windows)
            offsets = [encoder.token_offsets(each) for each in (one, other)]
            assert offsets[0].tolist() == offsets[1].tolist()
            for a, b in zip(one.windows, other.windows, strict=True):
                for name in ("input_ids_t", "shape_ids_t", "first_n", "last_n"):
                    assert getattr(a, name).tolist() == getattr(b, name).tolist()
                    assert getattr(a, name).dtype == getattr(b, name).dtype


def test_what_is_kept_of_chunks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "MOST_KNOWN", 10)
    encoder = wordpiece_encoder()
    encoder.encode([(" ".join(f"w{i}" for i in range(200)), None), ("x" * 500, None)])
    for start in range(0, 60, 4):
        text = " ".join(f"v{i}" for i in range(start, start + 4))
        (encoded,) = encoder.encode([(text, None)])
        assert len(encoded.word_spans_n2) == 4
        for known in (encoder._reader._known_chunks, encoder._reader._known_words):
            assert 4 <= len(known.values) <= 10
            assert all(len(text) <= chunks.LONGEST_KNOWN for text in known.values)


def test_every_white_space_that_the_rule_knows_ends_a_chunk() -> None:
    """Chunks are cut by `str.split`; the word rule asks `re` what white space is."""
    for code in range(0x110000):
        char = chr(code)
        assert (not char.split()) == char.isspace() == (re.match(r"\s", char) is not None), hex(
            code
        )


@pytest.mark.parametrize(
    "text", ["a b", " a b", "a  b", "a b ", "a\tb\n c", "\u3000a\u2028b", "  "]
)
def test_chunks_are_placed_where_they_stand(text: str) -> None:
    (encoded,) = WORDPIECE.encode([(text, None)])
    spans = encoded.word_spans_n2.tolist()
    assert [text[a:b] for a, b in spans] == text.split()


def test_a_word_without_subwords_becomes_unknown() -> None:
    (encoded,) = WORDPIECE.encode([("a \u200d \xa0 b", [(0, 1), (2, 3), (4, 5), (6, 7)])])
    (window,) = encoded.windows
    assert window.input_ids_t[2:4].tolist() == [WORDPIECE.unk_id] * 2
    assert WORDPIECE.token_offsets(encoded)[2:4].tolist() == [[2, 3], [4, 5]]


def test_no_words_no_windows() -> None:
    assert [e.windows for e in WORDPIECE.encode([("", None), (" \n", None), ("ab", [])])] == [
        ()
    ] * 3


def test_padding_and_truncation_of_the_file_are_ignored() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=50)
    tokenizer.enable_truncation(3)
    ids = {"cls_id": 2, "sep_id": 3, "pad_id": 0, "unk_id": 1}
    for given_tokenizer in (tokenizer, load_tokenizer(tokenizer.to_str())):
        (encoded,) = TextEncoder(given_tokenizer, TextSpec(), **ids).encode([("a b c d e", None)])
        assert len(encoded.windows[0].input_ids_t) == 7
    assert tokenizer.padding is not None  # the caller's own object is left alone


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        (None, None, "text_invalid"),
        (b"bytes", None, "text_invalid"),
        ("x" * 100_001, None, "text_too_long"),
        ("abc", [(0, 4)], "words_invalid"),
        ("abc", [(-1, 2)], "words_invalid"),
        ("abc", [(1, 1)], "words_invalid"),
        ("abc", [(1, 2), (0, 1)], "words_invalid"),
        ("abc", [(0, 2), (1, 3)], "words_invalid"),
        ("abc", [(0, 1, 2)], "words_invalid"),
        ("abc", [(0.5, 2)], "words_invalid"),
        ("abc", ["ab"], "words_invalid"),
        ("abc", [(0, 1), (2,)], "words_invalid"),
    ],
)
def test_bad_input_is_named(text: str, words: list[tuple[int, int]], code: str) -> None:
    with pytest.raises(InputError) as caught:
        WORDPIECE.encode([(text, words)])
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "{}", "nonsense", '{"model": 3}'])
def test_not_a_tokenizer(text: str) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        load_tokenizer(text)


def test_spec_round_trip_and_checks() -> None:
    spec = TextSpec(max_tokens=64, url_text=None)
    assert TextSpec.from_dict(asdict(spec) | {"later": 1}) == spec
    assert spec.word_rule == "words-2"
    # Bundles and checkpoints that name no rule are older than the second one.
    without = {name: value for name, value in asdict(spec).items() if name != "word_rule"}
    assert TextSpec.from_dict(without).word_rule == "words-1"
    with pytest.raises(InputError, match="overlap"):
        TextSpec(max_tokens=20, overlap_tokens=20)
    with pytest.raises(InputError, match="word rule"):
        TextSpec(word_rule="words-9")


def test_shape_classes() -> None:
    samples = ("7", "²", "?!", "", "ab", "AB", "A", "Ab", "ABc", "aB", "東")
    assert [word_shape(w) for w in samples] == [1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8]


@example("e\u0301 👨‍👩‍👧 مرحبا \x00 \U000e0041")
@example("İ ŉ ß ﬀ \ud800x")
@given(st.text(st.characters(exclude_categories=()), max_size=80))
def test_any_unicode_keeps_its_offsets(text: str) -> None:
    for encoder in (WORDPIECE, BYTE_LEVEL, SMALL):
        (encoded,) = encoder.encode([(text, None)])
        offsets = encoder.token_offsets(encoded)
        assert (offsets[:, 0] <= offsets[:, 1]).all()
        # Every word's subwords, one word after another.
        words: dict[int, int] = {}
        for window in encoded.windows:
            assert len(window.input_ids_t) <= encoder.spec.max_tokens
            counts = (window.last_n - window.first_n + 1).tolist()
            words |= {window.word_start + i: count for i, count in enumerate(counts)}
        begin = 1 if words else 0
        for (start, end), (_, count) in zip(
            encoded.word_spans_n2.tolist(), sorted(words.items()), strict=True
        ):
            of_word = offsets[begin : begin + count]
            assert ((of_word >= start) & (of_word <= end)).all()
            begin += count
        assert len(offsets) == begin + (1 if words else 0)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=60))
def test_windows_cover_all_words_and_overlap(lengths: list[int]) -> None:
    text = " ".join("x" * n for n in lengths)
    (encoded,) = SMALL.encode([(text, None)])
    spec = SMALL.spec
    end = 0
    for number, window in enumerate(encoded.windows):
        words = len(window.first_n)
        sizes = window.last_n - window.first_n + 1
        assert sizes.tolist() == [
            min(n, spec.word_limit) for n in lengths[window.word_start : window.word_start + words]
        ]
        assert window.first_n[0] == 1
        assert (window.first_n[1:] == window.last_n[:-1] + 1).all()
        assert window.last_n[-1] == len(window.input_ids_t) - 2
        if number:
            overlap = sizes[: end - window.word_start].sum()
            assert 0 <= overlap <= spec.overlap_tokens
        assert window.word_start <= end < window.word_start + words
        end = window.word_start + words
    assert end == len(lengths)


def test_batch_mates_change_nothing() -> None:
    texts = ["in paris", "", "x " * 300, "👍🏽 go"]
    together = WORDPIECE.encode([(text, None) for text in texts])
    for text, other in zip(texts, together, strict=True):
        (alone,) = WORDPIECE.encode([(text, None)])
        assert len(alone.windows) == len(other.windows)
        for a, b in zip(alone.windows, other.windows, strict=True):
            np.testing.assert_array_equal(a.input_ids_t, b.input_ids_t)
