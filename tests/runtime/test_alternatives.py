"""The n best answers: every answer tried on small posts, and `tag`'s own answer first."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from amlr.errors import AmlrError, InputError
from amlr.runtime import Alternative, Engine, Post
from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.cli import tag_command
from amlr.runtime.decode import Decoder
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.windows import PostScores, window_units
from drawings import saved, smooth
from encoders import wordpiece_encoder
from engine_posts import PICTURES, TEXTS, keys

LABELS = ("PER", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "X")
SCALES = 2
KINDS = ("joint", "segmental", "linear-chain")
Spans = tuple[tuple[int, int, int], ...]


def may_follow(before: str, tag: str) -> bool:
    return tag[0] != "I" or (before[0] in "BI" and before[1:] == tag[1:])


# "X" is allowed and means no entity, so two paths can say the same.
WEIGHTS = DecoderWeights(
    start_y=np.array([0, 1, -np.inf, -1, -np.inf, 0], np.float32),
    transitions_yy=np.arange(36, dtype=np.float32).reshape(6, 6) % 5 - 2,
    end_y=np.array([0, 1, -1, 0, 2, 0], np.float32),
    allowed_yy=np.array([[may_follow(a, b) for b in TAGS] for a in TAGS]),
)


def random_post(seed: int, words: int) -> PostScores:
    """A post with scores in quarters, which float32 adds exactly."""
    rng = np.random.default_rng(seed)
    text = " ".join("abcdefgh"[:words])
    (encoded,) = wordpiece_encoder().encode([(text, None)])
    (window,) = encoded.windows
    table = window_units(window, SCALES, every=False)

    def quarters(*shape: int) -> npt.NDArray[np.float32]:
        return (rng.integers(-8, 9, shape) / 4).astype(np.float32)

    return PostScores(
        encoded=encoded,
        sequence=window,
        units=table,
        unit_logits_uc=quarters(len(table), 3),
        emissions_ty=quarters(len(window.input_ids_t), len(TAGS)),
    )


def every_path(post: PostScores) -> Iterator[tuple[Spans, float]]:
    """Each path of the linear chain: its entities and its score."""
    emissions = post.word_emissions_ny.astype(np.float64)
    for path in itertools.product(range(len(TAGS)), repeat=len(emissions)):
        moves = list(itertools.pairwise(path))
        if not all(WEIGHTS.allowed_yy[move] for move in moves):
            continue
        score = (
            WEIGHTS.start_y[path[0]]
            + WEIGHTS.end_y[path[-1]]
            + emissions[np.arange(len(path)), path].sum()
        )
        score += sum(WEIGHTS.transitions_yy[move] for move in moves)
        if score > -np.inf:
            yield spans_of([TAGS[tag] for tag in path]), float(score)


def spans_of(names: list[str]) -> Spans:
    spans: list[tuple[int, int, int]] = []
    for word, name in enumerate(names):
        if name[0] == "B":
            spans.append((word, word, LABELS.index(name[2:])))
        elif name[0] == "I":
            spans[-1] = (spans[-1][0], word, spans[-1][2])
    return tuple(spans)


def every_segmentation(post: PostScores, kind: DecoderSettings) -> Iterator[tuple[Spans, float]]:
    """Each set of non-overlapping units, scored from the logits and emissions themselves."""
    words = len(post.encoded.word_spans_n2)
    logits = post.unit_logits_uc.astype(np.float64)
    units = {
        (int(start), int(end)): logits[row]
        for row, (start, end) in enumerate(
            zip(post.units.start_word_u, post.units.end_word_u, strict=True)
        )
    }
    emissions = post.word_emissions_ny.astype(np.float64)
    weight = kind.weight if kind.kind == "joint" else 0.0

    def gain(start: int, end: int, label: int) -> float:
        names = [
            f"{'B' if word == start else 'I'}-{LABELS[label]}" for word in range(start, end + 1)
        ]
        columns = [TAGS.index(name) for name in names]
        sums = sum(emissions[start + i, y] - emissions[start + i, 0] for i, y in enumerate(columns))
        z = units.get((start, end), np.zeros(3))
        return float(z[1 + label] - z[0] - kind.bias + weight * sums)

    def walk(first: int) -> Iterator[tuple[Spans, float]]:
        if first == words:
            yield (), 0.0
            return
        yield from walk(first + 1)
        for end in range(first, words):
            if (first, end) not in units and not (weight and end - first < kind.max_entity_words):
                continue
            for label, (rest, score) in itertools.product((0, 1), list(walk(end + 1))):
                yield ((first, end, label), *rest), gain(first, end, label) + score

    return walk(0)


def decoder_of(kind: DecoderSettings) -> Decoder:
    return Decoder(settings=kind, weights=WEIGHTS, labels=LABELS, tags=TAGS)


def alternatives(post: PostScores, kind: DecoderSettings, n: int) -> list[Alternative]:
    return decoder_of(kind).alternatives(post, n)


def spans_in(post: PostScores, answer: Alternative) -> Spans:
    starts, ends = post.encoded.word_spans_n2.T.tolist()
    return tuple(
        (starts.index(e.start), ends.index(e.end), LABELS.index(e.label)) for e in answer.entities
    )


def assert_in_order(found: list[Alternative]) -> None:
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True)
    assert len({tuple(keys(answer.entities)) for answer in found}) == len(found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), words=st.integers(1, 4), n=st.integers(1, 16))
def test_equals_exhaustive_search(kind: str, seed: int, words: int, n: int) -> None:
    post = random_post(seed, words)
    chosen = DecoderSettings(
        kind=kind,
        bias=0.5,
        weight=0.25,
        max_entity_words=3,
        temperature=1.5,  # type: ignore[arg-type]
    )
    found = alternatives(post, chosen, n)
    assert_in_order(found)
    (tagged,) = decoder_of(chosen).entities([post])
    assert found[0].entities == tagged
    every: dict[Spans, float] = {}
    for spans, score in (
        every_path(post) if kind == "linear-chain" else every_segmentation(post, chosen)
    ):
        every[spans] = max(score, every.get(spans, -np.inf))
    expected = sorted(every.values(), reverse=True)[:n]
    # Paths that say the same may leave fewer answers than were asked for, never other ones.
    count = len(found) if kind == "linear-chain" else min(n, len(every))
    assert [answer.score for answer in found] == expected[:count]
    assert len(found) == count
    for answer in found:
        assert every[spans_in(post, answer)] == answer.score
    if kind != "linear-chain":
        assert_marginals(post, found, every, chosen.temperature)


def assert_marginals(
    post: PostScores, found: list[Alternative], every: dict[Spans, float], temperature: float
) -> None:
    weights = {spans: np.exp(score / temperature) for spans, score in every.items()}
    total = sum(weights.values())
    for answer in found:
        for span, entity in zip(spans_in(post, answer), answer.entities, strict=True):
            share = sum(weight for spans, weight in weights.items() if span in spans) / total
            assert entity.score == pytest.approx(share, abs=1e-5)


def test_paths_that_mean_the_same_count_once() -> None:
    post = random_post(3, 2)
    found = alternatives(post, DecoderSettings(kind="linear-chain"), 16)
    assert_in_order(found)
    assert len(found) < 16  # the 16 best paths use X as well as O


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_the_first_answer_is_the_one_of_tag(engine: Engine, text: str, kind: Any) -> None:
    before = engine.decoder
    engine.decoder = replace(before, kind=kind)
    try:
        for image in (None, PICTURES[0]):
            found = engine.alternatives(Post(text, image), 6)
            assert found[0].entities == engine.tag(text, image).entities
            least = 1 if kind == "segmental" and text == TEXTS[-1] else 2  # it has no unit at all
            assert least <= len(found) <= 6
            assert_in_order(found)
            for entity in itertools.chain(*(answer.entities for answer in found)):
                assert text[entity.start : entity.end] == entity.text
                assert 0 <= entity.score <= 1
    finally:
        engine.decoder = before


def test_posts_without_words_have_one_answer(engine: Engine) -> None:
    assert engine.alternatives(Post(" ")) == [Alternative(entities=(), score=0.0)]


def test_bad_posts_and_numbers_are_refused(engine: Engine) -> None:
    for n in (0, 17, "3", 2.0):
        with pytest.raises(InputError, match=r"n must be a whole number in 1\.\.16"):
            engine.alternatives(Post("x"), n)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a Post, got str"):
        engine.alternatives("x")  # type: ignore[arg-type]
    with pytest.raises(InputError):
        engine.alternatives(Post("x", words=[(0, 50)]))


def test_a_closed_engine_refuses(tiny_plan: Path) -> None:
    with Engine.load(tiny_plan, provider="onnxruntime", threads=1, check="off") as engine:
        assert engine.alternatives(Post("Jordan"), 2)
    with pytest.raises(AmlrError, match="closed"):
        engine.alternatives(Post("Jordan"))


def test_escalation_and_skipped_pictures_agree_with_tag(ladder_plan: Path) -> None:
    for options in ({"precision": "escalate"}, {"precision": "exact", "image": "when-needed"}):
        with Engine.load(ladder_plan, threads=1, check="off", **options) as engine:  # type: ignore[arg-type]
            for text in TEXTS[:3]:
                found = engine.alternatives(Post(text, PICTURES[1]), 3)
                assert keys(found[0].entities) == keys(engine.tag(text, PICTURES[1]).entities)


def tag(plan: Path, *arguments: str, stdin: str | None = None) -> Any:
    options = ["--engine", str(plan), "--provider", "onnxruntime-cpu", "--check", "off", *arguments]
    return CliRunner().invoke(tag_command, options, input=stdin)


def test_command(tiny_plan: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    lines = '{"id": 1, "text": "Jordan in Paris", "image": "a.png"}\n{"id": 2}\n{"text": ""}\n'
    result = tag(tiny_plan, "--n-best", "3", "--image-root", str(tmp_path), stdin=lines)
    assert result.exit_code == 0, result.output
    first, broken, empty = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(first["alternatives"]) == 3
    assert first["alternatives"][0]["entities"] == first["entities"]
    assert set(first["alternatives"][1]) == {"entities", "score"}
    assert broken["alternatives"] == []
    assert empty["alternatives"] == [{"entities": [], "score": 0.0}]
    shown = tag(tiny_plan, "--n-best", "2", "--pretty", "--text", "Jordan in Paris").stdout
    assert "answer 1, score " in shown
    assert "answer 2, score " in shown
    assert "alternatives" not in tag(tiny_plan, "--text", "Jordan").stdout
    assert tag(tiny_plan, "--n-best", "17", "--text", "x").exit_code == 2
