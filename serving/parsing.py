"""Bytes of a request body to values: JSON objects and forms."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect, Request

from amlr.serving.json_reading import is_light, load_json, parse
from amlr.serving.problems import ApiError
from amlr.serving.schemas import DeadlineBody, PostsBody
from amlr.serving.settings import MAX_DEADLINE_MS, RequestLimits

_MANY_FIELDS = 100
_INLINE_FIELDS = 64_000
_PIECE_BYTES = 64_000
_FIELDS = ("posts", "deadline_ms", "words")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedBody:
    """A body whose form is right.

    Attributes:
        values: Posts in order, not checked yet: a bad one fails alone.
        is_single: Whether the body is one post.
        deadline_ms: Deadline, or None.
        files: Pictures by name of their part; None where pictures are base64.
    """

    values: Sequence[Any]
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
    value = load_json(body)
    if not isinstance(value, dict):
        raise ApiError(422, "body_invalid", 'expected an object {"text": ...} or {"posts": [...]}')
    if "posts" in value:
        many = validated(PostsBody, value)
        return ParsedBody(values=many.posts, is_single=False, deadline_ms=many.deadline_ms)
    deadline = validated(DeadlineBody, {k: value.pop(k) for k in ("deadline_ms",) if k in value})
    return ParsedBody(values=[value], is_single=True, deadline_ms=deadline.deadline_ms)


def validated(model: type[M], value: Any) -> M:
    """Check a parsed value.

    Raises:
        ApiError: A field is missing, unknown or of another type.
    """
    # Otherwise every single one of them would be listed.
    if isinstance(value, dict) and len(value) > _MANY_FIELDS:
        raise ApiError(422, "body_invalid", f"{len(value)} fields are more than there can be")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["loc"][:1] == ("id",):
        return ApiError(422, "body_invalid", "id: Input should be a string or a whole number")
    where = ".".join(str(part) for part in first["loc"]) or "body"
    return ApiError(422, "body_invalid", f"{where}: {first['msg']}")


async def read_form(request: Request, limits: RequestLimits) -> ParsedBody:
    """Parse a form: `text` and a file `image`, or `posts` (JSON) that names file parts.

    Raises:
        ApiError: Not a form, or of another form.
    """
    most = limits.max_posts + 8
    try:
        if content_type(request) == "application/x-www-form-urlencoded":
            body = await request.body()
            parts = await parse(_urlencoded, body, most, inline=is_light(body))
            texts, fields, files = await _collect(parts)
        else:
            form = request.form(
                max_files=limits.max_posts, max_fields=most, max_part_size=limits.max_body_bytes
            )
            async with form as data:
                texts, fields, files = await _collect(data.multi_items())
    except (ApiError, ClientDisconnect):
        raise
    # The parsers have several error classes of their own and let decoding errors through.
    except Exception:
        raise ApiError(400, "form_invalid", "the body is no valid form") from None
    is_short = sum(map(len, fields.values())) < _INLINE_FIELDS
    return await parse(_form_body, texts, fields, files, inline=is_short)


def _urlencoded(body: bytes, most: int) -> list[tuple[str, str]]:
    parts = body.split(b"&", most)
    if len(parts) > most:
        raise _bad_form(f"a form may have at most {most} fields")
    pairs = (part.partition(b"=") for part in parts if part)
    return [(_unquote(name), _unquote(value)) for name, _, value in pairs]


def _unquote(value: bytes) -> str:
    """Decode one field; in pieces, because each call holds the interpreter."""
    value = value.replace(b"+", b" ")
    pieces, begin = [], 0
    while begin < len(value):
        end = begin + _PIECE_BYTES
        while b"%" in value[end - 2 : end]:  # never within %41
            end -= 1
        pieces.append(unquote_to_bytes(value[begin:end]))
        begin = end
    return b"".join(pieces).decode()


def _form_body(texts: list[str], fields: dict[str, str], files: dict[str, bytes]) -> ParsedBody:
    deadline = _milliseconds(fields["deadline_ms"]) if "deadline_ms" in fields else None
    if "posts" in fields:
        if texts or "words" in fields:
            raise _bad_form("send either 'posts' or 'text', not both")
        posts = _json_field("posts", fields["posts"])
        if not isinstance(posts, list) or not posts:
            raise _bad_form("the field 'posts' must be a JSON list of at least one post")
        return ParsedBody(values=posts, is_single=False, deadline_ms=deadline, files=files)
    if len(texts) != 1 or set(files) - {"image"}:
        raise _bad_form(
            "expected one field 'text' and perhaps a file 'image'; several posts go into the "
            "field 'posts' as JSON, with 'image' naming a file part"
        )
    value: dict[str, Any] = {"text": texts[0], "image": "image" if "image" in files else None}
    if "words" in fields:
        value["words"] = _json_field("words", fields["words"])
    return ParsedBody(values=[value], is_single=True, deadline_ms=deadline, files=files)


async def _collect(
    parts: Iterable[tuple[str, str | UploadFile]],
) -> tuple[list[str], dict[str, str], dict[str, bytes]]:
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


def _json_field(name: str, text: str) -> Any:
    try:
        return load_json(text.encode("utf-8", "surrogatepass"), f"the field {name!r}")
    except ApiError as error:
        if error.status == 400:
            raise _bad_form(str(error)) from None
        raise


def _bad_form(message: str) -> ApiError:
    return ApiError(422, "form_invalid", message)
