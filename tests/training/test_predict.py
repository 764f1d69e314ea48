"""From raw scores to entities: windows, decoders, tuning."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amlr.kernels import is_tuning_half
from amlr.runtime import Engine, Post
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.text import EncodedText, TextWindow
from amlr.runtime.units import UnitTable
from amlr.runtime.windows import PostScores
from amlr.training.conll import LabelledPost
from amlr.training.data import make_corpus
from amlr.training.evaluate import (
    calibrated,
    score_decoders,
    table,
    tune,
    tune_joint,
    tune_segmental,
)
from amlr.training.predict import Prediction, decode, legal_moves, make_decoder, predict
from amlr.training.score import Span, gold_spans, to_words
from amlr.training.scorer import Scorer
from corpora import first_posts
from tiny import tiny_checkpoint

CHECKPOINT = tiny_checkpoint()
CONFIG = CHECKPOINT.config
DECODER = make_decoder(CHECKPOINT.build_model(), CHECKPOINT.decoder)


def _decode(predictions: list[Prediction], settings: DecoderSettings) -> list[list[Span]]:
    return decode(predictions, replace(DECODER, settings=settings))


def _oracle(words: int, gold: Sequence[Span], noise: float, seed: int) -> Prediction:
    """Scores that favour the gold entities over all units of up to three words."""
    rng = np.random.default_rng(seed)
    spans = [(s, e) for e in range(words) for s in range(max(0, e - 2), e + 1)]
    logits = rng.normal(0, noise, (len(spans), 5)).astype(np.float32)
    logits[:, 0] += 2
    emissions = rng.normal(0, noise, (words, len(CONFIG.tags))).astype(np.float32)
    emissions[:, 0] += 2
    for start, stop, label in gold:
        if (start, stop - 1) in spans:
            logits[spans.index((start, stop - 1)), 1 + CONFIG.labels.index(label)] += 6
        for word in range(start, stop):
            tag = ("B-" if word == start else "I-") + label
            emissions[word, CONFIG.tags.index(tag)] += 5
    nothing = np.zeros(0, np.int64)
    steps = np.arange(words, dtype=np.int32)
    window = TextWindow(
        input_ids_t=nothing, shape_ids_t=nothing, first_n=steps, last_n=steps, word_start=0
    )
    spans_u2 = np.array(spans, np.int32)
    scores = PostScores(
        encoded=EncodedText(
            text="x " * words,
            word_spans_n2=np.stack([2 * steps, 2 * steps + 1], axis=1),
            windows=(window,),
        ),
        sequence=window,
        units=UnitTable(
            start_word_u=spans_u2[:, 0],
            end_word_u=spans_u2[:, 1],
            start_step_u=spans_u2[:, 0],
            scale_u=spans_u2[:, 1] - spans_u2[:, 0] + 1,
        ),
        unit_logits_uc=logits,
        emissions_ty=emissions,
    )
    return Prediction(scores=scores, argmax_units=())


def test_decoders_find_gold_and_long_entities_need_emissions() -> None:
    gold: list[Span] = [(0, 2, "PER"), (3, 8, "ORG")]
    scores = [_oracle(9, gold, 0.1, 0)]
    segmental = _decode(scores, DecoderSettings(kind="segmental"))
    assert segmental == [[(0, 2, "PER")]]
    joint = _decode(scores, DecoderSettings(kind="joint", weight=1.0))
    assert joint == [gold]


def test_tuning_finds_settings_that_are_at_least_as_good() -> None:
    gold: list[list[Span]] = [[(n % 3, n % 3 + 1 + n % 2, CONFIG.labels[n % 4])] for n in range(30)]
    scores = [_oracle(7, spans, 2.0, n) for n, spans in enumerate(gold)]
    joint, counts = tune_joint(scores, gold, DECODER)
    assert joint.kind == "joint"
    for bias, weight in ((0.0, 1.0), (2.0, 0.5)):
        fixed = DecoderSettings(kind="joint", bias=bias, weight=weight)
        predicted = _decode(scores, fixed)
        correct = sum(len(set(a) & set(b)) for a, b in zip(gold, predicted, strict=True))
        assert counts.f1 >= 2 * correct / (30 + sum(map(len, predicted)))
    assert tune_joint(scores, gold, DECODER) == (joint, counts)
    segmental, _ = tune_segmental(scores, gold, DECODER)
    assert segmental.weight == 0


def _boastful(count: int, factor: float) -> tuple[list[Prediction], list[list[Span]], list[str]]:
    """Posts of one word, true labels drawn from the scores, which are then multiplied."""
    rng = np.random.default_rng(5)
    scores: list[Prediction] = []
    gold: list[list[Span]] = []
    for _ in range(count):
        logits = rng.normal(0, 2, 5)
        chances = np.exp(logits - np.logaddexp.reduce(logits))
        label = int(rng.choice(5, p=chances))
        gold.append([(0, 1, CONFIG.labels[label - 1])] if label else [])
        one = _oracle(1, [], 0.0, 0)
        boastful = (factor * logits[None]).astype(np.float32)
        scores.append(replace(one, scores=replace(one.scores, unit_logits_uc=boastful)))
    return scores, gold, [f"post-{n}" for n in range(count)]


@pytest.mark.parametrize("factor", [0.25, 12.5])
def test_temperature_is_fitted_on_one_half_and_measured_on_the_other(factor: float) -> None:
    scores, gold, ids = _boastful(1600, factor)
    segmental = replace(DECODER, settings=DecoderSettings(kind="segmental", temperature=3.0))
    settings, record = calibrated(scores, gold, ids, segmental)
    # Far from 1 and from the ends of any short list, as the scores were made.
    assert settings.temperature == pytest.approx(factor, rel=0.1)
    assert record["temperature"] == settings.temperature
    assert record["ece_after"] < 0.05 < record["ece_before"]
    half = is_tuning_half(ids)
    assert (record["tuning_posts"], record["posts"]) == (half.sum(), 1600 - half.sum())

    wrong_held = [spans if own else [] for spans, own in zip(gold, half, strict=True)]
    same, worse = calibrated(scores, wrong_held, ids, segmental)
    assert same == settings, "the held half has no say in the temperature"
    assert worse["ece_after"] > record["ece_after"]
    wrong_tuning = [[] if own else spans for spans, own in zip(gold, half, strict=True)]
    unfitted, left = calibrated(scores, wrong_tuning, ids, segmental)
    assert unfitted.temperature == 1, "nothing is right: no temperature is best"
    assert left["fitted"] is False
    assert left["ece_after"] == left["ece_before"] == record["ece_before"]


def test_too_few_posts_leave_the_temperature_alone() -> None:
    scores, gold, ids = _boastful(2, 9.0)
    settings, record = calibrated(scores[:1], gold[:1], ids[:1], DECODER)
    assert (settings.temperature, record["fitted"]) == (1.0, False)
    assert record["posts"] + record["tuning_posts"] == 1
    assert (record["ece_before"] is None) == (record["entities"] == 0)


def test_legal_moves_know_special_tags() -> None:
    moves, first = legal_moves(("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "X"))
    assert first.tolist() == [True, True, False, True, False, False]
    assert moves[1].tolist() == [True, True, True, True, False, False]
    assert not moves[:, 5].any()
    assert not moves[5].any()


def _predict(posts: list[LabelledPost], batch_size: int, every: bool) -> list[Prediction]:
    corpus = make_corpus(posts, CHECKPOINT, None, "all" if every else "aligned")
    scorer = Scorer(CHECKPOINT.build_model())
    return predict(scorer, corpus, batch_size=batch_size)


def test_scores_do_not_depend_on_the_batch_or_on_other_units() -> None:
    posts = first_posts(8)
    for first, second in zip(_predict(posts, 1, False), _predict(posts, 8, True), strict=True):
        one, two = first.scores, second.scores
        assert one.units.start_word_u.tolist() == two.units.start_word_u.tolist()
        np.testing.assert_allclose(one.unit_logits_uc, two.unit_logits_uc, rtol=0, atol=1e-5)
        np.testing.assert_allclose(one.word_emissions_ny, two.word_emissions_ny, rtol=0, atol=1e-5)
        aligned = {span for span in second.argmax_units if span[0] >= 0}
        assert set(first.argmax_units) == aligned


def test_long_posts_are_windowed_and_lose_no_word() -> None:
    words = tuple(f"word{n}" for n in range(60))
    post = LabelledPost(words=words, tags=("O",) * 60)
    (prediction,) = _predict([post], 4, False)
    units = prediction.scores.units
    assert len(prediction.scores.word_emissions_ny) == 60
    assert set(units.end_word_u.tolist()) == set(range(60))
    keys = list(zip(units.end_word_u.tolist(), units.start_word_u.tolist(), strict=True))
    assert keys == sorted(set(keys))
    assert _decode([prediction], DecoderSettings(weight=1.0, bias=50.0)) == [[]]


def test_entities_equal_those_of_the_exported_engine(tiny_plan: Path) -> None:
    rng = np.random.default_rng(8)
    pool = np.array(["Jordan", "in", "new", "york", "!", "apple's", "st", "x1", "@user", "OK"])
    posts = [
        LabelledPost(words=tuple(rng.choice(pool, size).tolist()), tags=("O",) * size)
        for size in (1, 4, 30, 90, 160)
    ]
    scores = _predict(posts, 3, False)
    with Engine.load(tiny_plan, provider="onnxruntime", precision="fp32") as engine:
        # A bias at which some units win and some do not, whatever the random weights.
        odds = np.concatenate([prediction.scores.unit_gains_uc for prediction in scores])
        engine.decoder = DecoderSettings(bias=float(np.quantile(odds.max(1), 0.6)), weight=0.3)
        requests = [Post(p.text, words=p.word_spans_n2) for p in posts]
        answers = engine.tag_batch(requests)
        expected = _decode(scores, engine.decoder)
    assert [
        to_words(p.word_spans_n2, a.entities) for p, a in zip(posts, answers, strict=True)
    ] == expected
    assert sum(map(len, expected)) > 20


def test_reports_name_every_decoder_and_lay_out_as_text() -> None:
    posts = first_posts(4)
    scores = _predict(posts, 4, True)
    corpus = make_corpus(posts, CHECKPOINT, None, "all")
    tuned = tune(scores, corpus, DECODER)
    report = score_decoders(scores, corpus, DECODER, tuned)
    assert list(report) == ["joint", "segmental", "linear-chain", "argmax"]
    assert report["joint"]["strict"]["gold"] == 4
    assert report["joint"]["lenient"]["gold"] == 5
    assert len(table(report).splitlines()) == 9
    assert len(gold_spans([post.tags for post in posts], "lenient", {})[3]) == 1
    assert math.isfinite(report["joint"]["bias"])


@pytest.mark.parametrize("kind", ["joint", "segmental", "linear-chain"])
def test_no_posts_give_no_entities(kind: str) -> None:
    assert _decode([], DecoderSettings(kind=kind)) == []
