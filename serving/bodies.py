"""Request bodies to posts: JSON with base64 pictures, or multipart with picture files."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from amlr.errors import InputError
from amlr.runtime.results import Post, Problem, Result
from amlr.serving.encoding import decode_base64
from amlr.serving.parsing import (
    ParsedBody,
    content_type,
    deadline_of,
    parse_json,
    read_form,
)
from amlr.serving.problems import ApiError
from amlr.serving.schemas import PostBody
from amlr.serving.settings import RequestLimits
from amlr.serving.urls import UrlFetcher

# Larger bodies are parsed in a thread, for the event loop serves everybody; for smaller ones the
# way there and back costs more than the parsing.
_INLINE_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPost:
    """A post of a request, or why it cannot be one.

    Attributes:
        post: What to tag; None where `error` says why not.
        id: The client's id.
        warnings: To be added to the result.
        error: Why this post cannot be tagged.
    """

    post: Post | None
    id: str | int | None = None
    warnings: tuple[Problem, ...] = ()
    error: Problem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TagRequest:
    """A request's posts.

    Attributes:
        posts: In order.
        is_single: Whether the answer is one object instead of a list.
        deadline_s: Seconds from now, or None.
    """

    posts: tuple[PreparedPost, ...]
    is_single: bool
    deadline_s: float | None = None


async def read_tag_request(
    request: Request, limits: RequestLimits, fetcher: UrlFetcher
) -> TagRequest:
    """Parse the body of `/v1/tag`, by its content type.

    Raises:
        ApiError: The body as a whole cannot be used; single bad posts are no error here.
    """
    kind = content_type(request)
    if kind == "application/json":
        body = await request.body()
        parsed = await (_inline if len(body) < _INLINE_BYTES else asyncio.to_thread)(
            parse_json, body
        )
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        parsed = await read_form(request, limits)
    else:
        raise ApiError(
            415,
            "unsupported_content_type",
            "send application/json, or multipart/form-data with picture files",
        )
    bodies = parsed.bodies
    if len(bodies) > limits.max_posts:
        raise ApiError(
            413,
            "too_many_posts",
            f"{len(bodies)} posts, at most {limits.max_posts} fit one request; "
            "send several requests, or a stream",
        )
    size = sum(len(body.image or "") for body in bodies)
    prepare = _inline if size < _INLINE_BYTES else asyncio.to_thread
    posts = await prepare(_prepare_all, parsed, limits)
    return TagRequest(
        posts=tuple(await _fetch(posts, bodies, fetcher)),
        is_single=parsed.is_single,
        deadline_s=deadline_of(request, parsed.deadline_ms),
    )


async def _inline(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _prepare_all(parsed: ParsedBody, limits: RequestLimits) -> list[PreparedPost]:
    if parsed.files is None:
        return [prepare_base64(body, limits) for body in parsed.bodies]
    return [_prepare_file(body, parsed.files, limits) for body in parsed.bodies]


def prepare_base64(body: PostBody, limits: RequestLimits) -> PreparedPost:
    """A post whose picture is in the body."""
    image: bytes | None = None
    if body.image is not None:
        try:
            image = decode_base64(body.image)
        except InputError as error:
            return _bad(body, error.code, str(error))
    return _prepare(body, image, limits)


def _prepare_file(
    body: PostBody, files: Mapping[str, bytes], limits: RequestLimits
) -> PreparedPost:
    if body.image is not None and body.image not in files:
        return _bad(body, "image_invalid", "'image' names a file part that was not sent")
    return _prepare(body, None if body.image is None else files[body.image], limits)


def _prepare(body: PostBody, image: bytes | None, limits: RequestLimits) -> PreparedPost:
    if len(body.text) > limits.max_text_chars:
        return _bad(
            body,
            "text_too_long",
            f"text has {len(body.text)} characters, at most {limits.max_text_chars} are accepted; "
            "split it into several posts",
        )
    if image is not None and len(image) > limits.max_image_bytes:
        return _bad(
            body,
            "image_too_large",
            f"the picture has {len(image)} bytes, at most {limits.max_image_bytes} are accepted",
        )
    if image is not None and body.image_url is not None:
        return _bad(body, "image_invalid", "send either 'image' or 'image_url', not both")
    words = None if body.words is None else [(w[0], w[1]) for w in body.words]
    if words is not None and any(end > len(body.text) for _, end in words):
        return _bad(body, "words_invalid", "a word ends past the end of the text")
    return PreparedPost(post=Post(body.text, image, words), id=body.id)


def _bad(body: PostBody, code: str, message: str) -> PreparedPost:
    return PreparedPost(post=None, id=body.id, error={"code": code, "message": message})


async def _fetch(
    posts: Sequence[PreparedPost], bodies: Sequence[PostBody], fetcher: UrlFetcher
) -> list[PreparedPost]:
    """Get the pictures given by address; a failed one is a warning, a forbidden one an error."""

    async def one(post: PreparedPost, body: PostBody) -> PreparedPost:
        if body.image_url is None or post.post is None:
            return post
        try:
            image = await fetcher.fetch(body.image_url)
        except InputError as error:
            problem: Problem = {"code": error.code, "message": str(error)}
            if error.code == "url_forbidden":
                return replace(post, post=None, error=problem)
            return replace(post, warnings=(*post.warnings, problem))
        return replace(post, post=replace(post.post, image=image))

    if all(body.image_url is None for body in bodies):
        return list(posts)
    return list(await asyncio.gather(*(one(p, b) for p, b in zip(posts, bodies, strict=True))))


def result_dict(prepared: PreparedPost, result: Result) -> dict[str, Any]:
    """A result as the answer's JSON, with the client's id."""
    values = result.to_dict()
    if prepared.warnings:
        values["warnings"] = [*prepared.warnings, *values["warnings"]]
    return values if prepared.id is None else {"id": prepared.id, **values}


def error_dict(prepared: PreparedPost, problem: Problem) -> dict[str, Any]:
    """The answer for a post that was not tagged."""
    values: dict[str, Any] = {
        "entities": [],
        "image_used": False,
        "provider": "",
        "precision": "",
        "warnings": list(prepared.warnings),
        "error": problem,
    }
    return values if prepared.id is None else {"id": prepared.id, **values}
