"""The spaCy component in a real pipeline."""

import importlib
import importlib.util
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amlr.errors import BundleError, InputError
from amlr.runtime import Engine
from drawings import saved, smooth
from requirements import require

TEXTS = ["Kevin Love at Quicken Loans Arena", "", "in paris", "jordan's u.s.-visit, new york!?"]


@pytest.fixture(scope="module")
def spacy() -> Any:
    is_here = importlib.util.find_spec("spacy") is not None
    require("spacy", found=is_here, reason='the package spacy (pip install "amlr[spacy]")')
    # Without an installation of this very version its entry point is unknown to spaCy.
    importlib.import_module("amlr.serving.spacy")
    return importlib.import_module("spacy")


@pytest.fixture(scope="module")
def nlp(spacy: Any, tiny_plan: Path) -> Any:
    nlp = spacy.blank("en")
    nlp.add_pipe("amlr", config={"engine": str(tiny_plan), "options": {"threads": 1}})
    return nlp


@pytest.fixture(scope="module")
def engine(tiny_plan: Path) -> Iterator[Engine]:
    with Engine.load(tiny_plan, threads=1) as engine:
        yield engine


def check(doc: Any, engine: Engine, image: Path | None = None) -> None:
    expected = engine.tag(doc.text, image)
    assert doc._.amlr == expected.to_dict()
    spans = [(span.start_char, span.end_char, span.label_) for span in doc.ents]
    for start, end, label in spans:
        assert any(
            start <= e.start and e.end <= end and label == e.label for e in expected.entities
        )
    # Every entity is met by one; on spaCy's own token ends it is met exactly.
    ends = {place for token in doc for place in (token.idx, token.idx + len(token))}
    for e in expected.entities:
        assert any(start < e.end and e.start < end for start, end, _ in spans)
        if {e.start, e.end} <= ends and len(spans) == len(expected.entities):
            assert (e.start, e.end, e.label) in spans


@pytest.mark.parametrize("text", TEXTS)
def test_entities_are_the_engines(nlp: Any, engine: Engine, text: str) -> None:
    check(nlp(text), engine)


@given(st.text(st.sampled_from("Paris jordan'.-@#u😀\n"), max_size=40))
def test_any_text_keeps_its_entities(nlp: Any, engine: Engine, text: str) -> None:
    check(nlp(text), engine)


def test_a_document_brings_its_picture(nlp: Any, engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(saved(smooth()))
    doc = nlp.make_doc("Jordan lands in Paris")
    doc._.amlr_image = str(path)
    check(nlp(doc), engine, path)
    assert doc._.amlr["image_used"]


def test_many_documents_come_back_in_order(nlp: Any, engine: Engine) -> None:
    docs = list(nlp.pipe(TEXTS * 3, batch_size=5))
    assert [doc.text for doc in docs] == TEXTS * 3
    for doc in docs:
        check(doc, engine)


def test_a_text_that_fails_goes_to_the_pipelines_error_handler(spacy: Any, nlp: Any) -> None:
    texts = ["in paris", "x" * 100_001, "new york"]
    with pytest.raises(InputError, match="at most 100000"):
        list(nlp.pipe(texts))
    with pytest.raises(InputError, match="at most 100000"):
        nlp(texts[1])
    failed: list[str] = []
    component = nlp.get_pipe("amlr")
    component.set_error_handler(lambda name, proc, docs, error: failed.append(docs[0].text))
    try:
        kept = [doc.text for doc in component.pipe(map(nlp.make_doc, texts))]
    finally:
        component.set_error_handler(spacy.util.raise_error)
    assert (kept, failed) == ([texts[0], texts[2]], [texts[1]])


def test_documents_and_the_configuration_can_be_kept(spacy: Any, nlp: Any) -> None:
    doc = nlp("jordan in paris")
    again = spacy.tokens.Doc(nlp.vocab).from_bytes(doc.to_bytes())
    assert again._.amlr == doc._.amlr
    assert [(e.text, e.label_) for e in again.ents] == [(e.text, e.label_) for e in doc.ents]
    rebuilt = spacy.blank("en").from_config(nlp.config)
    assert rebuilt("jordan in paris")._.amlr == doc._.amlr


def test_a_pipeline_without_a_bundle_says_so(spacy: Any, tmp_path: Path) -> None:
    nlp = spacy.blank("en")
    with pytest.raises(BundleError, match="no bundle at"):
        nlp.add_pipe("amlr", config={"engine": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="engine"):
        nlp.add_pipe("amlr")


def test_the_entry_point_leads_to_the_factory(spacy: Any) -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["spacy_factories"]["amlr"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
