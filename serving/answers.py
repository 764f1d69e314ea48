"""`POST /v1/tag`, and for every route: from posts to answers within a request."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from amlr.runtime.results import Problem, Result
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import Exchange, Route
from amlr.serving.jobs import Answer, Job, WorkerFailedError
from amlr.serving.parsing import PreparedPost, read_tag_request
from amlr.serving.problems import CLIENT_LEFT, ApiError, from_failure
from amlr.serving.service import TaggingService

# More are made into JSON in a thread, for the event loop serves everybody.
_INLINE_ENTITIES = 1000
T = TypeVar("T")


def service_of(request: Request) -> TaggingService:
    """The service behind an application."""
    service: TaggingService = request.app.state.service
    return service


def exchange_of(request: Request) -> Exchange:
    """The guard's record of this request."""
    exchange: Exchange = request.state.exchange
    return exchange


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


async def tag_posts(
    request: Request, posts: Sequence[PreparedPost], deadline_s: float | None
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Tag a request's posts.

    Returns:
        One answer per post as plain values, and headers with the times of its parts.

    Raises:
        RefusedError: The posts were refused.
        ApiError: The client left.
        Exception: Why nothing could be tagged.
    """
    service, exchange = service_of(request), exchange_of(request)
    good = [prepared.post for prepared in posts if prepared.post is not None]
    exchange.facts["posts"] = len(posts)
    if service.settings.log_texts:
        exchange.facts["texts"] = [post.text for post in good]
    outcomes: list[Answer | BaseException] = []
    if good:
        # The deadline starts when the request headers arrived.
        jobs = service.submit(good, deadline_s, since=exchange.started, reserved=exchange.reserved)
        outcomes = await _wait_for(request, jobs)
        failures = [o for o in outcomes if isinstance(o, BaseException)]
        if len(failures) == len(outcomes):
            raise failures[0]
    entities = sum(len(o.result.entities) for o in outcomes if isinstance(o, Answer))
    answers = await in_turn(_answer_dicts, service, posts, outcomes, size=entities)
    return answers, _timing_headers(outcomes)


def _answer_dicts(
    service: TaggingService,
    posts: Sequence[PreparedPost],
    outcomes: Sequence[Answer | BaseException],
) -> list[dict[str, Any]]:
    remaining = iter(outcomes)
    return [
        error_dict(prepared)
        if prepared.post is None
        else answer_dict(service, prepared, next(remaining))
        for prepared in posts
    ]


def answer_dict(
    service: TaggingService, prepared: PreparedPost, outcome: Answer | BaseException
) -> dict[str, Any]:
    """The answer for a post that was tagged, or failed, as plain values; counts it."""
    assert prepared.post is not None
    if isinstance(outcome, BaseException):
        error = from_failure(outcome)
        service.metrics.posts.labels(error.code).inc()
        return error_dict(prepared, {"code": error.code, "message": str(error)})
    service.metrics.result(outcome.result, had_image=prepared.post.image is not None)
    return _plain(prepared, outcome.result)


def error_dict(prepared: PreparedPost, problem: Problem | None = None) -> dict[str, Any]:
    """The answer for a post that was not tagged; the problem is its own unless another is named."""
    return _plain(prepared, Result(provider="", precision="", error=problem or prepared.error))


def _plain(prepared: PreparedPost, result: Result) -> dict[str, Any]:
    values = result.to_dict()
    values["warnings"] = [*prepared.warnings, *values["warnings"]]
    return values if prepared.id is None else {"id": prepared.id, **values}


async def in_turn(function: Callable[..., T], *arguments: Any, size: int) -> T:
    """Call a function here, or in a thread where so many entities would keep others waiting."""
    if size < _INLINE_ENTITIES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


async def _wait_for(request: Request, jobs: Sequence[Job]) -> list[Answer | BaseException]:
    """Wait for jobs, or cancel them when the client leaves.

    Raises:
        ApiError: The client left (status 499, which nobody sees).
    """
    # One wake-up for the whole request: a future of asyncio for every post, and a gathering one,
    # would cost more than all the rest of waiting.
    loop = asyncio.get_running_loop()
    ended, lacking = asyncio.Event(), len(jobs)

    def one_done() -> None:
        nonlocal lacking
        lacking -= 1
        if not lacking:
            ended.set()

    def on_done(_: object) -> None:  # in a worker's thread
        with contextlib.suppress(RuntimeError):  # the loop is gone, and so is who asked
            loop.call_soon_threadsafe(one_done)

    for job in jobs:
        job.future.add_done_callback(on_done)
    left = asyncio.create_task(_until_left(request))
    left.add_done_callback(lambda _: ended.set())
    try:
        await ended.wait()
        if not lacking:
            return [_outcome(job) for job in jobs]
        service_of(request).metrics.cancelled.inc(len(jobs))
        raise ApiError(CLIENT_LEFT, "client_left", "the client left")
    finally:
        left.cancel()
        # Also when this request itself is cancelled: nobody will read the answers.
        for job in jobs:
            job.future.cancel()


def _outcome(job: Job) -> Answer | BaseException:
    if job.future.cancelled():
        return WorkerFailedError("this post was dropped")
    return job.future.exception() or job.future.result()


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timing_headers(outcomes: Sequence[Answer | BaseException]) -> dict[str, str]:
    """`Server-Timing` (W3C), which browsers show: longest wait and compute time of the posts."""
    answers = [o for o in outcomes if isinstance(o, Answer)]
    if not answers:
        return {}
    wait = 1000 * max(answer.wait_s for answer in answers)
    compute = 1000 * max(answer.compute_s for answer in answers)
    return {"Server-Timing": f"wait;dur={wait:.2f}, compute;dur={compute:.2f}"}


ROUTES = [Route("/v1/tag", tag, methods=["POST"])]
