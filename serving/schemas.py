"""Bodies of requests and answers, for checking the former and documenting both."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import models_json_schema

from amlr.serving.settings import MAX_DEADLINE_MS

Word = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class PostBody(BaseModel):
    """One post."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str = Field(description="The text; offsets of entities count its characters.")
    id: str | int | None = Field(default=None, description="Comes back with the answer.")
    image: str | None = Field(
        default=None,
        description="The picture file in base64 (lines may be broken, a data URI is fine), or in "
        "multipart the name of its file part.",
    )
    image_url: str | None = Field(
        default=None, description="Address of the picture; only where the server allows it."
    )
    words: list[Word] | None = Field(
        default=None, description="Character spans [start, end) of the words, if you have them."
    )


_ANY_POST: dict[str, Any] = {
    "anyOf": [
        {"$ref": "#/components/schemas/PostBody"},
        {"description": "Anything else is answered with an error in its place."},
    ]
}


class DeadlineBody(BaseModel):
    """What a body may say beside its posts."""

    model_config = ConfigDict(extra="forbid", strict=True)

    deadline_ms: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DEADLINE_MS,
        description="Milliseconds in which the answer is of use; else it is refused with 429.",
    )


class PostsBody(DeadlineBody):
    """Several posts, not checked yet: a post of another form fails alone, in its `error`."""

    posts: list[Any] = Field(min_length=1, json_schema_extra={"items": _ANY_POST})


class SinglePostBody(PostBody, DeadlineBody):
    """One post as a whole body."""


class ProblemBody(BaseModel):
    """What was wrong."""

    code: str
    message: str


class EntityBody(BaseModel):
    """A named entity: `text[start:end]`, end exclusive, in characters (code points)."""

    start: int
    end: int
    text: str
    label: str
    score: float = Field(description="Probability that exactly this is an entity.")


class ResultBody(BaseModel):
    """Answer to one post."""

    id: str | int | None = None
    entities: list[EntityBody]
    image_used: bool
    provider: str = Field(description="Engine tier that served it.")
    precision: str
    certified: bool | None = Field(
        description="true: low precision, certified equal to float32; null: nothing to certify."
    )
    warnings: list[ProblemBody] = Field(description="E.g. a picture that cannot be used.")
    error: ProblemBody | None


class ResultsBody(BaseModel):
    """Answers to several posts, in their order."""

    results: list[ResultBody]


class ErrorDetail(ProblemBody):
    """What was wrong, with the id to look for in the log."""

    request_id: str


class ErrorBody(BaseModel):
    """Any answer that is no success."""

    error: ErrorDetail


class V2ErrorBody(BaseModel):
    """Any answer of the Open Inference Protocol that is no success."""

    error: str


class ExplanationBody(BaseModel):
    """One post, looked at from several sides."""

    result: ResultBody
    without_image: ResultBody
    attention: list[list[list[float]] | None]
    milliseconds: dict[str, float]
    picture_cached: bool
    crop: str = Field(description="`squash`: the whole picture; `crop`: its centre square.")


class V2Server(BaseModel):
    """About the server."""

    name: str
    version: str
    extensions: list[str]


class V2Live(BaseModel):
    """Liveness."""

    live: bool


class V2Ready(BaseModel):
    """Readiness."""

    ready: bool
    state: str


class V2Metadata(BaseModel):
    """One input or output."""

    name: str
    datatype: str
    shape: list[int]


class V2Model(BaseModel):
    """The model's inputs and outputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[V2Metadata]
    outputs: list[V2Metadata]
    parameters: dict[str, str] = Field(description="`manifest_sha256` of the bundle in service.")


V2Data = list[str | list[str]]


class V2Input(BaseModel):
    """An input: `text`, or `image` with base64 elements, empty for none."""

    name: str = Field(description="text or image")
    datatype: str = Field(description="BYTES")
    shape: list[int]
    data: V2Data


class V2Infer(BaseModel):
    """A request in JSON form; the binary form of Triton's clients is understood as well."""

    id: str | None = None
    inputs: list[V2Input]
    parameters: dict[str, Any] | None = Field(
        default=None, description="`timeout`: microseconds in which the answer is of use."
    )


class V2Output(BaseModel):
    """The output `result`: one JSON text a post."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str]


class V2InferAnswer(BaseModel):
    """An answer in JSON form."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2Output]


def first_problem(error: ValidationError) -> str:
    """The first of the things that are wrong, with its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["loc"][:2] == ("id", "str"):
        return "id: Input should be a string or a whole number"
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{where}: {first['msg']}"


def errors(*statuses: int, v2: bool = False) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route for these statuses."""
    return {
        status: {"model": V2ErrorBody if v2 else ErrorBody, "description": _MEANINGS[status]}
        for status in statuses
    }


def component_schemas() -> dict[str, Any]:
    """Schemas of the bodies that routes parse by hand."""
    _, definitions = models_json_schema(
        [
            (model, "validation")
            for model in (PostBody, SinglePostBody, PostsBody, ResultBody, ResultsBody, V2Infer)
        ],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


_MEANINGS = {
    400: "The body cannot be parsed.",
    401: "A key is needed.",
    404: "No such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "Another content type or encoding is needed.",
    422: "A field or post cannot be used.",
    429: "Too much work, or the deadline cannot be met; see Retry-After.",
    501: "This engine cannot explain itself.",
    503: "Starting, stopping or failing; see Retry-After.",
}
