"""Radii of a low precision: how large, of how many posts, for which texts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amlr.export import radii
from amlr.export.parity import Answer, ask
from amlr.export.radii import Pair, radii_record
from amlr.export.samples import sample_posts
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import Bundle
from amlr.runtime.radii import calibrated_radii

Exact = tuple[Bundle, list[Post], list[Answer]]


@pytest.fixture(scope="module")
def exact(tiny_plan: Path) -> Exact:
    """A bundle, posts with four photos, and its answers."""
    posts = [*sample_posts(60, images=6, seed=8), Post("Zürich in Москва")]
    with Engine.load(tiny_plan, provider="onnxruntime", precision="exact") as engine:
        return engine.bundle, posts, ask(engine, posts)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(radii, "LEAST_POSTS", 5)
    monkeypatch.setattr(radii, "LEAST_PHOTOS", 3)


def moved(answers: list[Answer], error: float, row: int | None = None) -> list[Answer]:
    """Answers whose emissions are off, in all posts or in one."""
    return [
        replace(
            answer,
            scores=replace(
                answer.scores, emissions_ty=answer.scores.emissions_ty + np.float32(error)
            ),
        )
        if answer.scores is not None and row in (None, place)
        else answer
        for place, answer in enumerate(answers)
    ]


def test_a_radius_is_the_largest_error_a_spread_or_a_floor(exact: Exact) -> None:
    bundle, posts, answers = exact

    def tokens(error: float, row: int | None = None, **options: float) -> dict[str, float]:
        pair = Pair(posts=posts, exact=answers, low=moved(answers, error, row))
        record = radii_record(bundle, pair, pair, given=True, **options)
        return {kind: found["tokens"] for kind, found in record["radii"].items()}

    # Everything is off by the same: twelve times its spread.
    assert tokens(0.01) == pytest.approx({"text": 0.12, "picture": 0.12}, rel=1e-3)
    assert tokens(0.0) == {"text": 5e-5, "picture": 5e-5}
    # One post alone is off: its error, twice for a picture, and as often again where emulated.
    of_text = next(i for i, a in enumerate(answers) if not a.image_used)
    of_picture = next(i for i, a in enumerate(answers) if a.image_used)
    assert tokens(1.0, of_text)["text"] == pytest.approx(12 / np.sqrt(20), rel=0.5)
    assert tokens(1.0, of_picture, reserve=9.0)["picture"] == pytest.approx(18.0, rel=1e-3)


def test_radii_say_which_texts_they_hold_for(exact: Exact) -> None:
    bundle, posts, answers = exact
    record = radii_record(
        bundle,
        Pair(posts=posts[:-1], exact=answers[:-1], low=answers[:-1]),
        Pair(posts=posts[-1:], exact=answers[-1:], low=answers[-1:]),
        given=True,
    )
    found = calibrated_radii(record)
    texts = [a.scores for a in answers if a.scores is not None]
    # Of one window: longer ones are not certified whatever they look like.
    whole = [scores for scores in texts if len(scores.encoded.windows) == 1]
    assert len(whole) < len(texts)
    longest = max(len(scores.sequence.input_ids_t) for scores in whole)
    assert {(r.steps, r.blocks) for r in found.values()} == {(longest, frozenset({0, 4, 6}))}
    assert record["certificates"]["text"] | {"certified": 1.0} == {
        "posts": 1,
        "beyond": 0,
        "certified": 1.0,
        "changed": 0,
    }


@pytest.mark.parametrize(
    ("given", "needed", "kinds"),
    [(True, 4, {"text", "picture"}), (True, 5, {"text"}), (False, 4, set())],
)
def test_too_few_or_invented_posts_certify_nothing(
    exact: Exact, monkeypatch: pytest.MonkeyPatch, given: bool, needed: int, kinds: set[str]
) -> None:
    bundle, posts, answers = exact
    monkeypatch.setattr(radii, "LEAST_PHOTOS", needed)
    pair = Pair(posts=posts, exact=answers, low=answers)
    record = radii_record(bundle, pair, pair, given=given)
    assert record["calibration"]["photos"] == 4
    assert set(record["radii"]) == set(record["certificates"]) == kinds
    assert set(calibrated_radii(record)) == kinds
    few = Pair(posts=posts[:5], exact=answers[:5], low=answers[:5])
    assert "text" not in radii_record(bundle, few, few, given=True)["radii"]


def test_pictures_alone_in_low_precision_have_a_radius_of_their_own(exact: Exact) -> None:
    bundle, posts, answers = exact
    pair = Pair(posts=posts, exact=answers, low=answers, picture_only=moved(answers, 1.0))
    record = radii_record(bundle, pair, pair, given=True)
    tokens = {kind: found["tokens"] for kind, found in record["radii"].items()}
    assert tokens == pytest.approx({"text": 5e-5, "picture": 5e-5, "picture-only": 12}, rel=1e-3)


def test_a_post_that_failed_certifies_nothing_of_its_kind(exact: Exact) -> None:
    bundle, posts, answers = exact
    row = next(i for i, a in enumerate(answers) if a.image_used)
    low = [replace(a, scores=None) if i == row else a for i, a in enumerate(answers)]
    pair = Pair(posts=posts, exact=answers, low=low)
    record = radii_record(bundle, pair, pair, given=True)
    assert set(record["radii"]) == {"text"}
