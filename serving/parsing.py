"""Bytes of a request body to checked values: JSON objects and multipart forms."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request

from amlr.serving.problems import ApiError
from amlr.serving.schemas import MAX_DEADLINE_MS, PostBody, PostsBody, SinglePostBody
from amlr.serving.settings import RequestLimits

_POSTS = TypeAdapter(list[PostBody])
_FIELDS = ("posts", "deadline_ms", "words")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBody:
    """A body whose form is right.

    Attributes:
        bodies: Posts in order.
        is_single: Whether the body is one post.
        deadline_ms: Deadline, or None.
        files: Pictures by name of their part; None where pictures are base64.
    """

    bodies: Sequence[PostBody]
    is_single: bool
    deadline_ms: int | None
    files: Mapping[str, bytes] | None = None


def content_type(request: Request) -> str:
    """Media type of the body, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def deadline_of(request: Request, deadline_ms: int | None = None) -> float | None:
    """Seconds the client gives: from the body, or from the header `X-Deadline-Ms`.

    Raises:
        ApiError: The header is no number in range.
    """
    header = request.headers.get("x-deadline-ms")
    if deadline_ms is None and header is not None:
        deadline_ms = _milliseconds(header)
    return None if deadline_ms is None else deadline_ms / 1000


def _milliseconds(text: str) -> int:
    is_number = text.isascii() and text.isdigit() and len(text) < 10
    if not is_number or not 1 <= int(text) <= MAX_DEADLINE_MS:
        raise ApiError(
            422, "deadline_invalid", f"a deadline is a whole number in 1..{MAX_DEADLINE_MS} ms"
        )
    return int(text)


def parse_json(body: bytes) -> ParsedBody:
    """Parse `{"text": ...}` or `{"posts": [...]}`.

    Raises:
        ApiError: Not JSON, or of another form.
    """
    try:
        value = json.loads(body)
    # Bad UTF-8 and bad JSON are ValueErrors; deep nesting overflows the stack.
    except (ValueError, RecursionError):
        raise ApiError(400, "json_invalid", "the body is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError(422, "body_invalid", 'expected an object {"text": ...} or {"posts": [...]}')
    if "posts" in value:
        many = validated(PostsBody, value)
        return ParsedBody(bodies=many.posts, is_single=False, deadline_ms=many.deadline_ms)
    one = validated(SinglePostBody, value)
    return ParsedBody(bodies=[one], is_single=True, deadline_ms=one.deadline_ms)


def validated(model: type[M], value: Any) -> M:
    """Check a parsed value.

    Raises:
        ApiError: A field is missing, unknown or of another type.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return ApiError(422, "body_invalid", f"{where}: {first['msg']}")


async def read_form(request: Request, limits: RequestLimits) -> ParsedBody:
    """Parse a form: `text` and a file `image`, or `posts` (JSON) that names file parts.

    Raises:
        ApiError: Not a form, or of another form.
    """
    form = request.form(
        max_files=limits.max_posts,
        max_fields=limits.max_posts + 8,
        max_part_size=limits.max_body_bytes,
    )
    try:
        async with form as parts:
            texts, fields, files = await _collect(parts)
    except (ApiError, ClientDisconnect):
        raise
    # The parser has several error classes of its own and lets decoding errors through.
    except Exception:
        raise ApiError(400, "form_invalid", "the body is no valid multipart form") from None
    deadline = _milliseconds(fields["deadline_ms"]) if "deadline_ms" in fields else None
    if "posts" in fields:
        if texts or "words" in fields:
            raise _bad_form("send either 'posts' or 'text', not both")
        # As long as a body may be, and the event loop serves everybody.
        posts = await asyncio.to_thread(_posts_field, fields["posts"])
        return ParsedBody(bodies=posts, is_single=False, deadline_ms=deadline, files=files)
    if len(texts) != 1 or set(files) - {"image"}:
        raise _bad_form(
            "expected one field 'text' and perhaps a file 'image'; several posts go into the "
            "field 'posts' as JSON, with 'image' naming a file part"
        )
    value: dict[str, Any] = {"text": texts[0], "image": "image" if "image" in files else None}
    if "words" in fields:
        value["words"] = _json_field("words", fields["words"])
    body = validated(PostBody, value)
    return ParsedBody(bodies=[body], is_single=True, deadline_ms=deadline, files=files)


async def _collect(parts: FormData) -> tuple[list[str], dict[str, str], dict[str, bytes]]:
    texts: list[str] = []
    fields: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, value in parts.multi_items():
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


def _json_field(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _bad_form(f"the field {name!r} is not JSON") from None


def _posts_field(text: str) -> list[PostBody]:
    try:
        posts = _POSTS.validate_python(_json_field("posts", text))
    except ValidationError as error:
        raise _invalid(error) from None
    if not posts:
        raise _bad_form("the field 'posts' is empty")
    return posts


def _bad_form(message: str) -> ApiError:
    return ApiError(422, "form_invalid", message)
