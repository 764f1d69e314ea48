"""A spaCy component: `nlp.add_pipe("amlr", config={"engine": "amlr.plan"})`.

Entities become `doc.ents`; `doc._.amlr` holds the whole answer, as `Result.to_dict` gives it. A
picture is given before the pipeline runs:

    doc = nlp.make_doc("Jordan lands in Paris tonight")
    doc._.amlr_image = "photo.jpg"
    nlp(doc)
"""

from collections.abc import Iterable, Iterator
from typing import Any

from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc
from spacy.util import filter_spans, minibatch

from amlr.runtime import Engine, Post, Result
from amlr.runtime.results import error_of

# Set again where a module is loaded anew, as notebooks do.
Doc.set_extension("amlr", default=None, force=True)
Doc.set_extension("amlr_image", default=None, force=True)


class Tagger(Pipe):  # type: ignore[misc]
    """Sets the entities of documents by an engine.

    The engine reads the text by its own word rule, so answers are those of `Engine.tag`. An entity
    that ends within a token of spaCy grows to the token's end; where two then meet, the longer one
    stays. Use threads and not `n_process`: an engine belongs to the process that loaded it.
    """

    def __init__(self, name: str, engine: Engine) -> None:
        """Serve a pipeline under this component's name."""
        self.name, self.engine = name, engine

    def __call__(self, doc: Any) -> Any:
        """Tag one document.

        Raises:
            AmlrError: The text cannot be used.
        """
        (result,) = self.engine.tag_batch([_post(doc)])
        _set(doc, result)
        return doc

    def pipe(self, stream: Iterable[Any], *, batch_size: int = 64) -> Iterator[Any]:
        """Tag documents in batches, in order; failed ones go to the pipeline's error handler."""
        for docs in minibatch(stream, size=batch_size):
            results = self.engine.tag_batch([_post(doc) for doc in docs])
            for doc, result in zip(docs, results, strict=True):
                try:
                    _set(doc, result)
                except Exception as error:
                    self.get_error_handler()(self.name, self, [doc], error)
                else:
                    yield doc


def make_tagger(nlp: Any, name: str, engine: str, options: dict[str, Any]) -> Tagger:
    """Load a bundle for a pipeline.

    Args:
        nlp: The pipeline.
        name: Of the component in it.
        engine: Folder of the bundle.
        options: Of `Engine.load`, e.g. `{"threads": 1}`.
    """
    return Tagger(name, Engine.load(engine, **options))


Language.factory("amlr", default_config={"options": {}}, assigns=["doc.ents"], func=make_tagger)


def _post(doc: Any) -> Post:
    return Post(doc.text, doc._.amlr_image)


def _set(doc: Any, result: Result) -> None:
    doc._.amlr = result.to_dict()
    if result.error is not None:
        raise error_of(result.error)
    spans = [
        doc.char_span(entity.start, entity.end, label=entity.label, alignment_mode="expand")
        for entity in result.entities
    ]
    doc.set_ents(filter_spans(spans))
