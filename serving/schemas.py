"""Bodies of requests, checked; `static/openapi.json` describes them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amlr.serving.settings import MAX_DEADLINE_MS

Word = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PostBody(_Body):
    """One post."""

    text: str
    id: str | int | None = None
    image: str | None = None
    image_url: str | None = None
    words: list[Word] | None = None


class DeadlineBody(_Body):
    """What a body may say beside its posts."""

    deadline_ms: int | None = Field(default=None, ge=1, le=MAX_DEADLINE_MS)


class PostsBody(DeadlineBody):
    """Several posts, not checked yet: a post of another form fails alone, in its `error`."""

    posts: list[Any] = Field(min_length=1)


def first_problem(error: ValidationError) -> str:
    """The first of the things that are wrong, with its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["loc"][:2] == ("id", "str"):
        return "id: Input should be a string or a whole number"
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{where}: {first['msg']}"
