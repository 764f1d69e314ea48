"""`POST /v1/explain`, for the page and for the curious: one post, looked at from several sides."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from amlr.errors import InputError
from amlr.runtime import Engine, Post
from amlr.runtime.explain import Explainer, Explanation
from amlr.serving.answers import exchange_of, service_of
from amlr.serving.encoding import json_bytes
from amlr.serving.guard import Route
from amlr.serving.jobs import TaggingEngine
from amlr.serving.parsing import read_tag_request
from amlr.serving.problems import ApiError
from amlr.serving.settings import BatchSettings

# People look at one post at a time; more than this at once is something else.
_MAX_WAITING = 8
_DIGITS = 5


class ExplainQueue:
    """One explanation at a time, beside the workers, so that it cannot crowd out ordinary posts."""

    def __init__(self, engine: TaggingEngine, batch: BatchSettings) -> None:
        """Prepare; the explainer opens its graph when it is first used, or by `warm_up`."""
        self._engine = engine if isinstance(engine, Engine) else None
        self._timeout_s = batch.stuck_s
        self._explainer: Explainer | None = None
        self._thread = ThreadPoolExecutor(1, "amlr-explain")
        self._waiting = 0

    def warm_up(self) -> None:
        """Open the attention graph now: later its file may be gone."""
        if self._engine is not None:
            self._thread.submit(self._explain, Post("Paris")).result()

    def close(self) -> None:
        """Take no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def explain(self, post: Post) -> tuple[Explanation, float]:
        """Explain a post.

        Returns:
            The explanation, and seconds waited for its turn.

        Raises:
            ApiError: Too many wait, or the engine cannot.
            InputError: The post cannot be used.
        """
        if self._engine is None:
            raise ApiError(501, "not_available", "this engine cannot explain itself")
        if self._waiting >= _MAX_WAITING:
            raise ApiError(429, "queue_full", "too many explanations wait", {"Retry-After": "2"})
        self._waiting += 1
        submitted = time.monotonic()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._thread, self._explain, post)
            explanation, begun = await asyncio.wait_for(future, self._timeout_s)
        except TimeoutError:
            raise ApiError(503, "engine_failed", "the engine hangs", {"Retry-After": "5"}) from None
        finally:
            self._waiting -= 1
        return explanation, begun - submitted

    def _explain(self, post: Post) -> tuple[Explanation, float]:
        """The explanation, and when it was begun."""
        begun = time.monotonic()
        if self._explainer is None:
            assert self._engine is not None
            self._explainer = Explainer(self._engine)
        return self._explainer.explain(post), begun


async def explain(request: Request) -> Response:
    """What `/v1/tag` says, what it would say without the picture, and where the model looked.

    `attention` has one grid an entity, laid over the picture as the model saw it (`crop` says which
    part that is), or null where no single unit of the model covers the entity.
    """
    service = service_of(request)
    service.check_open()
    begun = time.monotonic()
    tag_request = await read_tag_request(request)
    (prepared, *others) = tag_request.posts
    if others:
        raise ApiError(422, "body_invalid", "one post at a time is explained")
    if prepared.post is None:
        problem = prepared.error or {"code": "failed", "message": "not tagged"}
        raise ApiError(422, problem["code"], problem["message"])
    read_s = time.monotonic() - begun
    try:
        explanation, wait_s = await request.app.state.explain_queue.explain(prepared.post)
    except InputError as error:
        raise ApiError(422, error.code, str(error)) from None
    exchange_of(request).facts["posts"] = 1
    service.metrics.result(explanation.result, had_image=prepared.post.image is not None)
    answer = _answer(explanation)
    answer["result"]["warnings"] = [*prepared.warnings, *answer["result"]["warnings"]]
    answer["milliseconds"] |= {"read": round(1000 * read_s, 3), "wait": round(1000 * wait_s, 3)}
    assert isinstance(service.engine, Engine)
    answer["crop"] = service.engine.manifest.image.resize
    return Response(json_bytes(answer), media_type="application/json")


def _answer(explanation: Explanation) -> dict[str, Any]:
    return {
        "result": explanation.result.to_dict(),
        "without_image": explanation.without_image.to_dict(),
        "attention": [
            None if grid is None else [[round(float(x), _DIGITS) for x in row] for row in grid]
            for grid in explanation.attention
        ],
        "milliseconds": {name: round(1000 * s, 3) for name, s in explanation.seconds.items()},
        "picture_cached": explanation.picture_cached,
    }


ROUTES = [Route("/v1/explain", explain, methods=["POST"])]
