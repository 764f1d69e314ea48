"""Large JSON is read as the standard library reads it, but lets other threads run meanwhile."""

import json
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from amlr.serving import json_reading
from amlr.serving.json_reading import is_light, load_json
from amlr.serving.problems import ApiError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
# Escapes beside pieces' ends: backslashes, pairs, halves of pairs, quotes.
ESCAPES = st.lists(
    st.sampled_from(["a", "\\\\", '\\"', "\\n", "\\u00e9", "\\ud83d\\ude00", "\\ud83d", "é", "😀"]),
    max_size=60,
).map("".join)


@pytest.fixture(scope="module", autouse=True)
def every_body_is_heavy() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_reading, "_SMALL_BYTES", 0)
        patch.setattr(json_reading, "_INLINE_BYTES", 0)
        patch.setattr(json_reading, "_PIECE_CHARS", 20)
        yield


@given(VALUES, st.booleans())
def test_values_come_back(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert load_json(text.encode("utf-8", "surrogatepass")) == json.loads(text)


@given(ESCAPES, ESCAPES)
@example("a" * 19 + "\\ud83d\\ude00", "")
@example("a" * 13 + "\\ud83d\\ude00" + "a" * 30, "a" * 30)
@example("\\\\" * 40, "a" * 60)
def test_strings_are_the_same_in_pieces(one: str, other: str) -> None:
    body = f'{{"posts": ["{one}", "{"x" * 50}{other}{"y" * 50}"]}}'.encode()
    assert load_json(body) == json.loads(body)


@given(
    st.binary(max_size=20) | st.text('[]{}",:\\u0eE+-.1 aNtrue\n\x01', max_size=20).map(str.encode)
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    try:
        expected = json.loads(body)
    except (ValueError, RecursionError):
        with pytest.raises(ApiError) as refused:
            load_json(body)
        assert (refused.value.status, refused.value.code) == (400, "json_invalid")
    else:
        assert repr(load_json(body)) == repr(expected)


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deep_nesting_is_refused(opening: str) -> None:
    with pytest.raises(ApiError) as refused:
        load_json(opening.encode() * 100_000)
    assert refused.value.code == "json_invalid"


@pytest.mark.parametrize("value", ["0", "[]", "{}", '""', "null", '{"a":0}'])
def test_too_many_values_are_refused_early(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_reading, "MAX_VALUES", 1000)
    assert len(load_json(f"[{','.join([value] * 400)}]".encode())) == 400
    for body in (f"[{','.join([value] * 2000)}]", f'{{"posts": [[{",".join([value] * 2000)}]]}}'):
        with pytest.raises(ApiError) as refused:
            load_json(body.encode())
        assert (refused.value.status, refused.value.code) == (413, "too_many_values")
        # What follows was not even looked at.
        with pytest.raises(ApiError, match="more than 1000"):
            load_json(body.encode()[:-4] + b"nonsense")


@pytest.mark.parametrize("number", ["1" * 5000, "0." + "1" * 2000, "1e" + "9" * 2000])
def test_endless_numbers_are_refused(number: str) -> None:
    with pytest.raises(ApiError) as refused:
        load_json(f"[{number}]".encode())
    assert refused.value.code == "json_invalid"


def test_few_values_are_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(json_reading, "_SMALL_BYTES", 64_000)
    monkeypatch.setattr(json_reading, "_INLINE_BYTES", 500_000)
    assert is_light(b"[],[]," * 1000)
    assert is_light(b"a" * 400_000)
    assert not is_light(b"[],[]," * 20_000)
    assert not is_light(b"a" * 600_000)


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b",".join([b"[0,1]"] * 40_000) + b"]",
        b"[" + b",".join([b"[]"] * 60_000) + b"]",
        b'["' + b"A" * 8_000_000 + b'"]',
        b'["' + (b"A" * 76 + b"\\n") * 100_000 + b'"]',
    ],
    ids=["words", "empty lists", "long string", "broken lines"],
)
def test_other_threads_run_meanwhile(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread gets its turn many times, where `json.loads` would keep it waiting once."""
    monkeypatch.setattr(json_reading, "_PIECE_CHARS", 1_000_000)
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    turns, done = 0, threading.Event()

    def count() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            time.sleep(0.0001)

    other = threading.Thread(target=count)
    other.start()
    try:
        turns = 0
        value = load_json(body)
        seen = turns
    finally:
        done.set()
        other.join()
        sys.setswitchinterval(before)
    assert value == json.loads(body)
    assert seen >= 4
