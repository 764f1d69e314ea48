"""Request bodies to posts: JSON with base64 pictures, or multipart with picture files."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from amlr.errors import InputError
from amlr.runtime.results import Post, Problem, Result
from amlr.serving.encoding import decode_base64
from amlr.serving.json_reading import is_light, parse
from amlr.serving.parsing import (
    ParsedBody,
    content_type,
    deadline_of,
    parse_json,
    read_form,
    validated,
)
from amlr.serving.problems import ApiError
from amlr.serving.schemas import PostBody
from amlr.serving.settings import RequestLimits
from amlr.serving.urls import UrlFetcher


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedPost:
    """A post of a request, or why it cannot be one.

    Attributes:
        post: What to tag; None where `error` says why not.
        id: The client's id.
        image_url: Where its picture is to be fetched.
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
        inline = is_light(body)
        parsed = await parse(parse_json, body, inline=inline)
    elif kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        parsed = await read_form(request, limits)
        inline = parsed.is_single
    else:
        raise ApiError(
            415,
            "unsupported_content_type",
            "send application/json, or multipart/form-data with picture files",
        )
    if len(parsed.values) > limits.max_posts:
        raise ApiError(
            413,
            "too_many_posts",
            f"{len(parsed.values)} posts, at most {limits.max_posts} fit one request; "
            "send several requests, or a stream",
        )
    posts = await parse(_prepare_all, parsed, limits, inline=inline)
    return TagRequest(
        posts=tuple(await _fetch(posts, fetcher)),
        is_single=parsed.is_single,
        deadline_s=deadline_of(request, parsed.deadline_ms),
    )


def _prepare_all(parsed: ParsedBody, limits: RequestLimits) -> list[PreparedPost]:
    return [prepare_post(value, limits, parsed.files) for value in parsed.values]


def prepare_post(
    value: Any, limits: RequestLimits, files: Mapping[str, bytes] | None = None
) -> PreparedPost:
    """Check one post of a request.

    Args:
        value: The post as parsed JSON.
        limits: What it may hold.
        files: Pictures by name of their part; None where pictures are base64.
    """
    words = value.get("words") if isinstance(value, dict) else None
    if isinstance(words, list) and len(words) > limits.max_text_chars:
        return _bad(value, "words_invalid", f"{len(words)} words are more than a text may have")
    try:
        body = validated(PostBody, value)
    except ApiError as error:
        return _bad(value, error.code, str(error))
    try:
        image = _picture(body, files)
        _check(body, image, limits)
    except InputError as error:
        return _bad(value, error.code, str(error))
    spans = None if body.words is None else [(w[0], w[1]) for w in body.words]
    return PreparedPost(post=Post(body.text, image, spans), id=body.id, image_url=body.image_url)


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


def _bad(value: Any, code: str, message: str) -> PreparedPost:
    identifier = value.get("id") if isinstance(value, dict) else None
    # Any other id, e.g. NaN, may be no JSON.
    is_id = isinstance(identifier, str | int) and not isinstance(identifier, bool)
    return PreparedPost(
        post=None,
        id=identifier if is_id else None,
        error={"code": code, "message": message},
    )


async def _fetch(posts: Sequence[PreparedPost], fetcher: UrlFetcher) -> list[PreparedPost]:
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
        return list(posts)
    return list(await asyncio.gather(*map(one, posts)))


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
