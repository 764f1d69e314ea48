"""Request bodies to posts: JSON with base64 pictures, or forms with picture files."""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

import pybase64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from amlr.errors import InputError
from amlr.runtime.results import Post, Problem
from amlr.serving.json_reading import is_light, load_json, parse
from amlr.serving.problems import ApiError
from amlr.serving.settings import MAX_DEADLINE_MS, RequestLimits
from amlr.serving.urls import UrlFetcher

_MANY_FIELDS = 100
_INLINE_FIELDS = 64_000
_FIELDS = ("posts", "deadline_ms", "words")
_URLENCODED = "application/x-www-form-urlencoded"
_DATA_URI = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)
M = TypeVar("M", bound=BaseModel)
# Bodies of requests; `static/openapi.json` describes them.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPost:
    """A post of a request, or why it cannot be one.

    Attributes:
        post: The post to tag; None where `error` says why not.
        id: The client's id.
        image_url: Address of the picture.
        warnings: To be added to the result.
        error: Why this post cannot be tagged.
    """

    post: Post | None
    id: str | int | None = None
    image_url: str | None = None
    warnings: tuple[Problem, ...] = ()
    error: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRequest:
    """A request's posts.

    Attributes:
        posts: In order; a bad post fails alone.
        is_single: Whether the answer is one object instead of a list.
        deadline_ms: Milliseconds in which the answer is of use, or None.
    """

    posts: tuple[PreparedPost, ...]
    is_single: bool
    deadline_ms: int | None = None

    @property
    def deadline_s(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline_ms is None else self.deadline_ms / 1000


async def read_tag_request(request: Request) -> TagRequest:
    """Parse the body of `/v1/tag`, by its content type.

    Raises:
        ApiError: The body as a whole cannot be used; single bad posts are no error here.
    """
    limits: RequestLimits = request.app.state.service.settings.limits
    kind = content_type(request)
    if kind == "application/json":
        body = await request.body()
        tag_request = await parse(_json_request, body, limits, inline=is_light(body))
    elif kind in ("multipart/form-data", _URLENCODED):
        texts, fields, files = await _read_form(request, limits)
        is_short = sum(map(len, fields.values())) < _INLINE_FIELDS
        tag_request = await parse(_form_request, texts, fields, files, limits, inline=is_short)
    else:
        raise ApiError(
            415,
            "unsupported_content_type",
            "send application/json, or multipart/form-data with picture files",
        )
    posts = await _fetch(tag_request.posts, request.app.state.fetcher)
    header = request.headers.get("x-deadline-ms")
    if tag_request.deadline_ms is None and header is not None:
        return replace(tag_request, posts=posts, deadline_ms=_milliseconds(header))
    return replace(tag_request, posts=posts)


def content_type(request: Request) -> str:
    """Media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _milliseconds(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not is_number or not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise ApiError(
            422, "deadline_invalid", f"a deadline is a whole number in 1..{MAX_DEADLINE_MS} ms"
        )
    return int(text)


# Posts ----------------------------------------------------------------------------------------


def prepare_post(
    value: Any, limits: RequestLimits, files: Mapping[str, bytes] | None = None
) -> PreparedPost:
    """Check one post of a request.

    Args:
        value: The post as parsed JSON.
        limits: Sizes that it may have.
        files: Pictures by name of their part; None where pictures are base64.
    """
    words = value.get("words") if isinstance(value, dict) else None
    if isinstance(words, list) and len(words) > limits.max_text_chars:
        return bad_post(value, "words_invalid", f"{len(words)} words are more than a text may have")
    try:
        body = _validated(PostBody, value)
        image = _picture(body, files)
        _check(body, image, limits)
    except (ApiError, InputError) as error:
        return bad_post(value, error.code, str(error))
    spans = None if body.words is None else [(w[0], w[1]) for w in body.words]
    return PreparedPost(post=Post(body.text, image, spans), id=body.id, image_url=body.image_url)


def _prepare(
    values: Sequence[Any], limits: RequestLimits, files: Mapping[str, bytes] | None = None
) -> tuple[PreparedPost, ...]:
    if len(values) > limits.max_posts:
        raise ApiError(
            413,
            "too_many_posts",
            f"{len(values)} posts, at most {limits.max_posts} fit one request; "
            "send several requests, or a stream",
        )
    return tuple(prepare_post(value, limits, files) for value in values)


def _picture(body: PostBody, files: Mapping[str, bytes] | None) -> bytes | None:
    if body.image is None:
        return None
    if files is None:
        return decode_base64(body.image)
    if body.image not in files:
        raise InputError("'image' names a file part that was not sent", "image_invalid")
    return files[body.image]


def _check(body: PostBody, image: bytes | None, limits: RequestLimits) -> None:
    if len(body.text) > limits.max_text_chars:
        raise InputError(
            f"text has {len(body.text)} characters, at most {limits.max_text_chars} are accepted; "
            "split it into several posts",
            "text_too_long",
        )
    if image is not None and len(image) > limits.max_image_bytes:
        raise InputError(
            f"the picture has {len(image)} bytes, at most {limits.max_image_bytes} are accepted",
            "image_too_large",
        )
    if image is not None and body.image_url is not None:
        raise InputError("send either 'image' or 'image_url', not both", "image_invalid")
    if any(word[1] > len(body.text) for word in body.words or ()):
        raise InputError("a word ends past the end of the text", "words_invalid")


def bad_post(value: Any, code: str, message: str) -> PreparedPost:
    """What cannot be tagged, with the id that it may have."""
    identifier = value.get("id") if isinstance(value, dict) else None
    # Any other id, e.g. NaN, may be no JSON.
    is_id = isinstance(identifier, str | int) and not isinstance(identifier, bool)
    return PreparedPost(
        post=None,
        id=identifier if is_id else None,
        error={"code": code, "message": message},
    )


async def _fetch(posts: Sequence[PreparedPost], fetcher: UrlFetcher) -> tuple[PreparedPost, ...]:
    """Get the pictures given by address; a failed one is a warning, a forbidden one an error."""

    async def one(post: PreparedPost) -> PreparedPost:
        if post.image_url is None or post.post is None:
            return post
        try:
            image = await fetcher.fetch(post.image_url)
        except InputError as error:
            problem: Problem = {"code": error.code, "message": str(error)}
            if error.code == "url_forbidden":
                return replace(post, post=None, error=problem)
            return replace(post, warnings=(*post.warnings, problem))
        return replace(post, post=replace(post.post, image=image))

    if all(post.image_url is None for post in posts):
        return tuple(posts)
    return tuple(await asyncio.gather(*map(one, posts)))


def decode_base64(text: str) -> bytes:
    """Bytes of strict base64 (standard alphabet, padded).

    Lines may be broken, as mail and many tools do, and a data URI may hold it, as browsers do.

    Raises:
        InputError: It is none; code `image_invalid`.
    """
    if (uri := _DATA_URI.match(text)) is not None:
        text = text[uri.end() :]
    try:
        return _strict(text)
    except ValueError:  # so are the library's errors
        pass
    try:
        # Only what is white space in ASCII may be left out.
        return _strict("".join(text.split()) if text.isascii() else text)
    except ValueError:
        raise InputError("the picture is not valid base64", code="image_invalid") from None


def _strict(text: str) -> bytes:
    # The library lets some needless padding pass.
    if len(text) % 4 or text.endswith("===") or text.find("=", 0, -2) >= 0:
        raise ValueError
    return pybase64.b64decode(text, validate=True)


# JSON -----------------------------------------------------------------------------------------


def _json_request(body: bytes, limits: RequestLimits) -> TagRequest:
    return _tag_request(load_json(body), limits)


def _tag_request(
    value: Any, limits: RequestLimits, files: Mapping[str, bytes] | None = None
) -> TagRequest:
    """Check `{"text": ...}` or `{"posts": [...]}`."""
    if not isinstance(value, dict):
        raise ApiError(422, "body_invalid", 'expected an object {"text": ...} or {"posts": [...]}')
    if "posts" in value:
        many = _validated(PostsBody, value)
        posts = _prepare(many.posts, limits, files)
        return TagRequest(posts=posts, is_single=False, deadline_ms=many.deadline_ms)
    deadline = _validated(DeadlineBody, {k: value.pop(k) for k in ("deadline_ms",) if k in value})
    posts = _prepare([value], limits, files)
    return TagRequest(posts=posts, is_single=True, deadline_ms=deadline.deadline_ms)


def _validated(model: type[M], value: Any) -> M:
    # Otherwise every single one of them would be listed.
    if isinstance(value, dict) and len(value) > _MANY_FIELDS:
        raise ApiError(422, "body_invalid", f"{len(value)} fields are more than there can be")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise ApiError(422, "body_invalid", first_problem(error)) from None


def first_problem(error: ValidationError) -> str:
    """The first of the things that are wrong, with its place."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["loc"][:2] == ("id", "str"):
        return "id: Input should be a string or a whole number"
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return f"{where}: {first['msg']}"


# Forms ----------------------------------------------------------------------------------------

_Form = tuple[list[str], dict[str, str], dict[str, bytes]]


async def _read_form(request: Request, limits: RequestLimits) -> _Form:
    """Texts, other fields and files of a form."""
    max_fields = limits.max_posts + 8
    try:
        if content_type(request) == _URLENCODED:
            body = await request.body()
            parts = await parse(_urlencoded, body, max_fields, inline=is_light(body))
            return await _collect(parts)
        form = request.form(
            max_files=limits.max_posts, max_fields=max_fields, max_part_size=limits.max_body_bytes
        )
        async with form as data:
            return await _collect(data.multi_items())
    except (ApiError, ClientDisconnect):
        raise
    # The parsers have several error classes of their own and let decoding errors through.
    except Exception:
        raise ApiError(400, "form_invalid", "the body is no valid form") from None


def _urlencoded(body: bytes, max_fields: int) -> list[tuple[str, str]]:
    if body.count(b"&") >= max_fields:
        raise _bad_form(f"a form may have at most {max_fields} fields")
    return parse_qsl(body.decode(), keep_blank_values=True, errors="strict")


async def _collect(parts: Iterable[tuple[str, str | UploadFile]]) -> _Form:
    texts: list[str] = []
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, value in parts:
        if isinstance(value, UploadFile):
            if name in files:
                raise _bad_form(f"two files are named {name[:40]!r}")
            files[name] = await value.read()
        elif name == "text":
            texts.append(value)
        elif name in _FIELDS:
            fields[name] = value
        else:
            raise _bad_form(f"unknown field {name[:40]!r}")
    return texts, fields, files


def _form_request(
    texts: list[str], fields: dict[str, str], files: dict[str, bytes], limits: RequestLimits
) -> TagRequest:
    """Parse `text` and a file `image`, or `posts` (JSON) that names file parts."""
    value: dict[str, Any] = {}
    if "deadline_ms" in fields:
        value["deadline_ms"] = _milliseconds(fields["deadline_ms"])
    if "posts" in fields:
        if texts or "words" in fields:
            raise _bad_form("send either 'posts' or 'text', not both")
        value["posts"] = posts = _json_field("posts", fields["posts"])
        if not isinstance(posts, list) or not posts:
            raise _bad_form("the field 'posts' must be a JSON list of at least one post")
        return _tag_request(value, limits, files)
    if len(texts) != 1 or set(files) - {"image"}:
        raise _bad_form(
            "expected one field 'text' and perhaps a file 'image'; several posts go into the "
            "field 'posts' as JSON, with 'image' naming a file part"
        )
    value |= {"text": texts[0], "image": "image" if files else None}
    if "words" in fields:
        value["words"] = _json_field("words", fields["words"])
    return _tag_request(value, limits, files)


def _json_field(name: str, text: str) -> Any:
    try:
        return load_json(text.encode("utf-8", "surrogatepass"), f"the field {name!r}")
    except ApiError as error:
        if error.status == 400:
            raise _bad_form(str(error)) from None
        raise


def _bad_form(message: str) -> ApiError:
    return ApiError(422, "form_invalid", message)
