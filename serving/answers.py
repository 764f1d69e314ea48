"""From jobs to answers within a request: waits, notices a client that left, times the parts."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from amlr.runtime.results import Post
from amlr.serving.bodies import PreparedPost, TagRequest, error_dict, result_dict
from amlr.serving.guard import Exchange
from amlr.serving.jobs import Answer, Job, RefusedError, WorkerFailedError
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
    """What the guard keeps of this request."""
    exchange: Exchange = request.state.exchange
    return exchange


async def tag_posts(
    request: Request, tag_request: TagRequest
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Tag a request's posts.

    Returns:
        One answer a post as plain values, and headers that tell the time of its parts.

    Raises:
        ApiError: Nothing could be tagged, or the client left.
    """
    service, exchange = service_of(request), exchange_of(request)
    good = [p for p in tag_request.posts if p.post is not None]
    exchange.facts["posts"] = len(tag_request.posts)
    if service.settings.log_texts:
        exchange.facts["texts"] = [p.post.text for p in good if p.post is not None]
    outcomes: list[Answer | BaseException] = []
    if good:
        posts = [p.post for p in good if p.post is not None]
        outcomes = await wait_for(request, submit(service, posts, tag_request.deadline_s, exchange))
        failures = [o for o in outcomes if isinstance(o, BaseException)]
        if len(failures) == len(outcomes):
            raise from_failure(failures[0])
    answers = await in_turn(
        _answer_dicts, service, tag_request, outcomes, size=entities_of(outcomes)
    )
    return answers, timing_headers(outcomes)


def _answer_dicts(
    service: TaggingService, tag_request: TagRequest, outcomes: Sequence[Answer | BaseException]
) -> list[dict[str, Any]]:
    remaining = iter(outcomes)
    return [
        error_dict(prepared, prepared.error or {"code": "failed", "message": "not tagged"})
        if prepared.post is None
        else answer_dict(service, prepared, next(remaining))
        for prepared in tag_request.posts
    ]


def entities_of(outcomes: Sequence[Answer | BaseException]) -> int:
    """Entities of some answers."""
    return sum(len(o.result.entities) for o in outcomes if isinstance(o, Answer))


async def in_turn(function: Callable[..., T], *arguments: Any, size: int) -> T:
    """Call a function here, or in a thread where so many entities would keep others waiting."""
    if size < _INLINE_ENTITIES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def submit(
    service: TaggingService, posts: Sequence[Post], deadline_s: float | None, exchange: Exchange
) -> list[Job]:
    """Queue posts; the deadline counts from the request's head, for so does the client's patience.

    Raises:
        ApiError: Refused.
    """
    try:
        return service.submit(posts, deadline_s, since=exchange.started, reserved=exchange.reserved)
    except RefusedError as error:
        raise from_failure(error) from None


def check_open(service: TaggingService) -> None:
    """Refuse before work begins.

    Raises:
        ApiError: Not started, starting or stopping.
    """
    try:
        service.check_open()
    except RefusedError as error:
        raise from_failure(error) from None


def answer_dict(
    service: TaggingService, prepared: PreparedPost, outcome: Answer | BaseException
) -> dict[str, Any]:
    """One answer as plain values; counts it."""
    assert prepared.post is not None
    if isinstance(outcome, BaseException):
        error = from_failure(outcome)
        service.metrics.posts.labels(error.code).inc()
        return error_dict(prepared, {"code": error.code, "message": str(error)})
    service.metrics.result(outcome.result, had_image=prepared.post.image is not None)
    return result_dict(prepared, outcome.result)


async def wait_for(request: Request, jobs: Sequence[Job]) -> list[Answer | BaseException]:
    """Wait for jobs, or cancel them when the client leaves.

    Raises:
        ApiError: The client left (status 499, which nobody sees).
    """
    if not jobs:
        return []
    # One wake-up for the whole request: a future of asyncio for every post, and a gathering one,
    # would cost more than all the rest of waiting.
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    lacking = len(jobs)

    def end() -> None:
        if not ended.done():
            ended.set_result(None)

    def one_done() -> None:
        nonlocal lacking
        lacking -= 1
        if not lacking:
            end()

    def tell(_: object) -> None:  # in a worker's thread
        with contextlib.suppress(RuntimeError):  # the loop is gone, and so is who asked
            loop.call_soon_threadsafe(one_done)

    for job in jobs:
        job.future.add_done_callback(tell)
    left = asyncio.create_task(_until_left(request))
    left.add_done_callback(lambda _: end())
    try:
        await ended
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


def timing_headers(outcomes: Sequence[Answer | BaseException]) -> dict[str, str]:
    """`Server-Timing` (W3C), which browsers show: longest wait and compute time of the posts."""
    answers = [o for o in outcomes if isinstance(o, Answer)]
    if not answers:
        return {}
    wait = 1000 * max(answer.wait_s for answer in answers)
    compute = 1000 * max(answer.compute_s for answer in answers)
    return {"Server-Timing": f"wait;dur={wait:.2f}, compute;dur={compute:.2f}"}
