"""What goes into an engine and what comes out: posts, entities, results, raw scores."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from amlr.errors import AmlrError, InputError

if TYPE_CHECKING:
    from amlr.runtime.image import ImageSource
    from amlr.runtime.text import Spans


class Problem(TypedDict):
    """Why a post failed, or what was wrong without failing it."""

    code: str
    message: str


FAILED = "failed"


def problem(error: AmlrError) -> Problem:
    """Plain form of an error."""
    code = error.code if isinstance(error, InputError) else FAILED
    return {"code": code, "message": str(error)}


def error_of(values: Problem) -> AmlrError:
    """The error that `problem` gave the plain form of."""
    message, code = values["message"], values["code"]
    return AmlrError(message) if code == FAILED else InputError(message, code)


@dataclass(frozen=True, slots=True)
class Post:
    """One post.

    Attributes:
        text: The text as given; all offsets count its characters.
        image: Path, bytes or Pillow image, or None.
        words: Character spans of the words, end exclusive; None applies the word rule.
    """

    text: str
    image: "ImageSource | None" = None
    words: "Spans | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A named entity; `text` is exactly the post's `text[start:end]`.

    Attributes:
        start: First character.
        end: One past the last character.
        text: The characters.
        label: Entity class.
        score: Probability, under the bundle's temperature, that exactly this is an entity.
    """

    start: int
    end: int
    text: str
    label: str
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "start": self.start,
            "end": self.end,
            "text": self.text,
            "label": self.label,
            "score": round(self.score, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One possible answer to a post.

    Attributes:
        entities: In text order, never overlapping; each with its own probability as its score.
        score: The decoder's sum for this answer; differences between answers of one post count.
    """

    entities: tuple[Entity, ...]
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "entities": [entity.to_dict() for entity in self.entities],
            "score": round(self.score, 6),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Answer to one post.

    Attributes:
        entities: In text order, never overlapping.
        image_used: Whether the picture was used.
        provider: Engine tier that served it, e.g. `onnxruntime-cpu`.
        precision: Its numeric precision, e.g. `fp32`.
        certified: True where a low-precision answer was certified equal to float32's; None where
            float32 gave it, or where a precision was asked for by name.
        warnings: What was wrong without failing the post, e.g. an unreadable picture.
        error: Why the post failed, or None.
    """

    entities: tuple[Entity, ...] = ()
    image_used: bool = False
    provider: str
    precision: str
    certified: bool | None = None
    warnings: tuple[Problem, ...] = ()
    error: Problem | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "entities": [entity.to_dict() for entity in self.entities],
            "image_used": self.image_used,
            "provider": self.provider,
            "precision": self.precision,
            "certified": self.certified,
            "warnings": list(self.warnings),
            "error": self.error,
        }

    def to_transformers(self) -> list[dict[str, Any]]:
        """Entities in the format of Hugging Face's token classification with aggregation.

        Returns:
            One `{"entity_group", "score", "word", "start", "end"}` an entity, in text order; `word`
            is exactly the post's `text[start:end]`.

        Raises:
            AmlrError: The post failed; this format has no field for errors.
        """
        if self.error is not None:
            raise error_of(self.error)
        return [
            {
                "entity_group": entity.label,
                "score": entity.score,
                "word": entity.text,
                "start": entity.start,
                "end": entity.end,
            }
            for entity in self.entities
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raw:
    """The model's own numbers for one post.

    A text longer than one window is given as one sequence: every score comes from the window where
    it has the widest context.

    Attributes:
        input_ids: Token ids with the two special tokens, shape (T,), int64.
        token_offsets: Characters of each token, specials (0, 0), shape (T, 2), int32.
        unit_starts: First token of each unit, shape (U,), int32.
        unit_ends: Last token of each unit, inclusive, shape (U,), int32.
        unit_probs: Softmax of `unit_logits`, shape (U, 1+C), float32.
        unit_logits: Raw span-head scores in the order of `classes`, shape (U, 1+C), float32.
        emissions: Raw token-head scores in the order of `tags`, shape (T, Y), float32.
        classes: `none`, then the labels.
        tags: Names of the token head's columns.
        image_used: Whether the picture was used.
    """

    input_ids: npt.NDArray[np.int64]
    token_offsets: npt.NDArray[np.int32]
    unit_starts: npt.NDArray[np.int32]
    unit_ends: npt.NDArray[np.int32]
    unit_probs: npt.NDArray[np.float32]
    unit_logits: npt.NDArray[np.float32]
    emissions: npt.NDArray[np.float32]
    classes: tuple[str, ...]
    tags: tuple[str, ...]
    image_used: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON."""
        arrays = (
            "input_ids",
            "token_offsets",
            "unit_starts",
            "unit_ends",
            "unit_probs",
            "unit_logits",
            "emissions",
        )
        values: dict[str, Any] = {name: getattr(self, name).tolist() for name in arrays}
        return values | {
            "classes": list(self.classes),
            "tags": list(self.tags),
            "image_used": self.image_used,
        }
