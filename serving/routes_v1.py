"""`POST /v1/tag`: one or many posts, and `POST /v1/tag/stream`: JSON lines."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from amlr.serving.answers import exchange_of, in_turn, service_of, tag_posts
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import STREAM_PATH, Route
from amlr.serving.parsing import content_type, read_tag_request
from amlr.serving.problems import ApiError
from amlr.serving.stream import LinesResponse, tag_lines


async def tag(request: Request) -> Response:
    """Tag one post (`{"text", "image"}`) or several (`{"posts": [...]}`).

    Several posts keep their order, and a bad one fails alone, in its `error`. A picture that cannot
    be used gives a warning and `image_used: false`.
    """
    tag_request = await read_tag_request(request)
    answers, headers = await tag_posts(request, tag_request.posts, tag_request.deadline_s)
    content: dict[str, Any] = {"results": answers}
    if tag_request.is_single:
        (content,) = answers
        if content["error"] is not None:
            raise ApiError(422, content["error"]["code"], content["error"]["message"])
    size = sum(len(answer["entities"]) for answer in answers)
    body = await in_turn(json_bytes, content, size=size)
    return Response(body, media_type="application/json", headers=headers)


async def tag_stream(request: Request) -> Response:
    """JSON lines in (`{"id", "text", "image"}`), JSON lines out, in order, while both flow.

    Any number of lines: the server reads on as it works, so the client must read while it sends.
    A bad line is answered with its error. Streams yield to other requests instead of being refused.
    """
    if content_type(request) not in ("application/x-ndjson", "application/jsonl"):
        raise ApiError(415, "unsupported_content_type", "send application/x-ndjson")
    service = service_of(request)
    service.check_open()
    lines = tag_lines(request.stream(), service, exchange_of(request))
    return LinesResponse(lines)


ROUTES = [
    Route("/v1/tag", tag, methods=["POST"]),
    Route(STREAM_PATH, tag_stream, methods=["POST"]),
]
