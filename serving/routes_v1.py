"""`POST /v1/tag`: one or many posts, and `POST /v1/tag/stream`: JSON lines."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from amlr.serving.answers import check_open, exchange_of, in_turn, service_of, tag_posts
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import STREAM_PATH
from amlr.serving.parsing import content_type, read_tag_request
from amlr.serving.problems import ApiError
from amlr.serving.schemas import errors
from amlr.serving.settings import MAX_DEADLINE_MS
from amlr.serving.stream import LinesResponse, tag_lines


class _DirectRoute(APIRoute):
    """Documented like any route, but calls `endpoint(request)` straight away.

    Solving parameters, of which there are none, takes a tenth of the server's own work on a post.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint itself."""
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


router = APIRouter(prefix="/v1", tags=["tagging"], route_class=_DirectRoute)
_DEADLINE = {"type": "integer", "minimum": 1, "maximum": MAX_DEADLINE_MS}
_DEADLINE_HEADER: dict[str, Any] = {
    "name": "X-Deadline-Ms",
    "in": "header",
    "description": "Milliseconds in which the answer is of use.",
    "schema": _DEADLINE,
}
_FORM = {
    "oneOf": [
        {
            "type": "object",
            "description": "One post.",
            "required": ["text"],
            "additionalProperties": False,
            "properties": {
                "text": {"type": "string"},
                "image": {"type": "string", "format": "binary"},
                "words": {"type": "string", "description": "JSON list of [start, end)."},
                "deadline_ms": _DEADLINE,
            },
        },
        {
            "type": "object",
            "description": "Several posts; further parts are the files that they name.",
            "required": ["posts"],
            "properties": {
                "posts": {"type": "string", "description": 'JSON list of {"text", "image": PART}.'},
                "deadline_ms": _DEADLINE,
            },
        },
    ]
}
TAG_BODY: dict[str, Any] = {
    "parameters": [_DEADLINE_HEADER],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        {"$ref": "#/components/schemas/SinglePostBody"},
                        {"$ref": "#/components/schemas/PostsBody"},
                    ]
                },
                "example": {"text": "Kevin Love at Quicken Loans Arena"},
            },
            "multipart/form-data": {"schema": _FORM},
        },
    },
}


@router.post(
    "/tag",
    summary="Find entities in one post or several",
    responses={
        200: {
            "description": "One result, or `results` in the order of `posts`.",
            "content": {
                "application/json": {
                    "schema": {
                        "anyOf": [
                            {"$ref": "#/components/schemas/ResultBody"},
                            {"$ref": "#/components/schemas/ResultsBody"},
                        ]
                    }
                }
            },
        },
        **errors(400, 401, 408, 413, 415, 422, 429, 503),
    },
    openapi_extra=TAG_BODY,
)
async def tag(request: Request) -> Response:
    """Tag one post (`{"text", "image"}`) or several (`{"posts": [...]}`).

    Several posts keep their order, and a bad one fails alone, in its `error`. A picture that cannot
    be used gives a warning and `image_used: false`.
    """
    service = service_of(request)
    tag_request = await read_tag_request(
        request, service.settings.limits, request.app.state.fetcher
    )
    answers, headers = await tag_posts(request, tag_request.posts, tag_request.deadline_s)
    content: dict[str, Any] = {"results": answers}
    if tag_request.is_single:
        (content,) = answers
        if content["error"] is not None:
            raise ApiError(422, content["error"]["code"], content["error"]["message"])
    # Results are plain values already: no second round of checks.
    size = sum(len(answer["entities"]) for answer in answers)
    body = await in_turn(json_bytes, content, size=size)
    return Response(body, media_type="application/json", headers=headers)


@router.post(
    STREAM_PATH.removeprefix("/v1"),
    summary="Tag a long list of posts, line by line",
    responses={
        200: {
            "description": "One result a line, in order.",
            "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
        },
        **errors(401, 415, 429, 503),
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-ndjson": {
                    "schema": {"type": "string"},
                    "example": '{"id": 1, "text": "Paris in May"}\n',
                }
            },
        },
    },
)
async def tag_stream(request: Request) -> Response:
    """JSON lines in (`{"id", "text", "image"}`), JSON lines out, in order, while both flow.

    Any number of lines: the server reads on as it works, so the client must read while it sends.
    A bad line is answered with its error. Streams yield to other requests instead of being refused.
    """
    if content_type(request) not in ("application/x-ndjson", "application/jsonl"):
        raise ApiError(415, "unsupported_content_type", "send application/x-ndjson")
    service = service_of(request)
    check_open(service)
    lines = tag_lines(request.stream(), service, exchange_of(request))
    return LinesResponse(lines)
