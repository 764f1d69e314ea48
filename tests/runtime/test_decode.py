from typing import Any

import numpy as np
import pytest

from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.decode import Decoder, tag_spans
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.windows import PostScores, window_units
from encoders import wordpiece_encoder

LABELS = ("PER", "LOC")
# The odd order and the extra tag are those of a release checkpoint.
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "X")
SCALES = 3


def legal(before: str, tag: str) -> bool:
    return before[1:] == tag[1:] and before[0] in "BI" if tag[0] == "I" else tag != "X"


WEIGHTS = DecoderWeights(
    start_y=np.array([0 if legal("O", tag) else -np.inf for tag in TAGS], np.float32),
    transitions_yy=np.zeros((6, 6), np.float32),
    end_y=np.zeros(6, np.float32),
    allowed_yy=np.array([[legal(a, b) for b in TAGS] for a in TAGS]),
)


def scored(
    text: str, units: dict[str, int], tags: dict[str, str], height: float = 10
) -> PostScores:
    """A post whose named units and words stand out from the rest."""
    (encoded,) = wordpiece_encoder().encode([(text, None)])
    (window,) = encoded.windows
    table = window_units(window, SCALES, every=False)
    logits = np.zeros((len(table), 3), np.float32)
    logits[:, 0] = 5
    emissions = np.zeros((len(window.input_ids_t), len(TAGS)), np.float32)
    emissions[window.first_n, 0] = 1
    spans = encoded.word_spans_n2
    for row, (start, end) in enumerate(zip(table.start_word_u, table.end_word_u, strict=True)):
        name = text[spans[start, 0] : spans[end, 1]]
        if name in units:
            logits[row, units[name]] = 10
    for word, (start, end) in enumerate(spans.tolist()):
        if text[start:end] in tags:
            emissions[window.first_n[word], TAGS.index(tags[text[start:end]])] = height
    return PostScores(
        encoded=encoded,
        sequence=window,
        units=table,
        unit_logits_uc=logits,
        emissions_ty=emissions,
    )


def decode(posts: list[PostScores], **settings: Any) -> list[list[tuple[str, str]]]:
    decoder = Decoder(
        settings=DecoderSettings(**settings), weights=WEIGHTS, labels=LABELS, tags=TAGS
    )
    found = decoder.entities(posts)
    for post, entities in zip(posts, found, strict=True):
        for entity in entities:
            assert post.encoded.text[entity.start : entity.end] == entity.text
            assert 0 < entity.score <= 1
    return [[(entity.text, entity.label) for entity in entities] for entities in found]


POSTS = [
    scored("new york in jordan", {"new york": 2, "jordan": 1}, {"new": "B-PER"}, 2),
    scored("st", {}, {}),
    scored("a b c d e", {}, {"a": "B-LOC", "b": "I-LOC", "c": "I-LOC", "d": "I-LOC", "e": "B-PER"}),
]


def test_segmental() -> None:
    assert decode(POSTS, kind="segmental") == [[("new york", "LOC"), ("jordan", "PER")], [], []]
    assert decode(POSTS, kind="segmental", bias=4.0)[0] == decode(POSTS, kind="segmental")[0]
    assert decode(POSTS, kind="segmental", bias=6.0) == [[], [], []]


def test_joint_adds_emissions_and_reaches_past_the_largest_scale() -> None:
    plain, _, long = decode(POSTS, kind="joint", weight=1.0)
    assert plain == [("new york", "LOC"), ("jordan", "PER")]
    # Four words exceed K = 3 subwords: emissions alone make it an entity.
    assert long == [("a b c d", "LOC"), ("e", "PER")]
    assert decode(POSTS, kind="joint", weight=1.0, max_entity_words=3)[2] != long
    assert decode(POSTS, kind="joint", weight=0.0) == decode(POSTS, kind="segmental")


def test_linear_chain() -> None:
    assert decode(POSTS, kind="linear-chain") == [
        [("new", "PER")],
        [],
        [("a b c d", "LOC"), ("e", "PER")],
    ]


@pytest.mark.parametrize("kind", ["segmental", "joint", "linear-chain"])
def test_groups_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = decode(POSTS, kind=kind, weight=0.5)
    monkeypatch.setattr("amlr.runtime.decode.GROUP_CELLS", 1)
    assert decode(POSTS, kind=kind, weight=0.5) == together
    assert decode([], kind=kind) == []


def test_posts_without_entities_cost_no_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amlr.runtime.decode.entity_marginals", None)
    assert decode(POSTS[1:2], kind="segmental", bias=5.0) == [[]]


@pytest.mark.parametrize("kind", ["segmental", "joint", "linear-chain"])
def test_a_post_is_as_sure_alone_as_among_others(kind: Any) -> None:
    settings = DecoderSettings(kind=kind, weight=0.5)
    decoder = Decoder(settings=settings, weights=WEIGHTS, labels=LABELS, tags=TAGS)
    for post, entities in zip(POSTS, decoder.entities(POSTS), strict=True):
        (alone,) = decoder.entities([post])
        assert [entity.score for entity in alone] == pytest.approx([e.score for e in entities])
        assert [(e.start, e.end) for e in alone] == [(e.start, e.end) for e in entities]


def test_words_of_several_subwords_are_read_at_their_first() -> None:
    post = scored("new yorker", {}, {"yorker": "B-PER"})
    last = post.sequence.last_n[1]
    assert last > post.sequence.first_n[1]
    post.emissions_ty[last, TAGS.index("B-LOC")] = 50
    assert decode([post], kind="linear-chain") == [[("yorker", "PER")]]


def test_a_span_is_as_sure_as_its_least_sure_tag() -> None:
    path = np.array([1, 2, 0, 3], np.int32)
    sure = np.array([0.9, 0.5, 0.1, 0.7], np.float32)
    spans = tag_spans(path, sure, LABELS, TAGS)
    assert [span[:3] for span in spans] == [(0, 1, 0), (3, 3, 1)]
    assert [span[3] for span in spans] == pytest.approx([0.5, 0.7])
