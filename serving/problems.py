"""Errors as HTTP answers: a stable code, one sentence, never a path or a trace."""

import json
import math
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response

from amlr.serving.jobs import RefusedError, WorkerFailedError

CLIENT_LEFT = 499
# Causes for which no request is served, whatever its size.
NOT_OPEN = ("not_started", "starting", "stopping")


class ApiError(Exception):
    """An answer other than success.

    Attributes:
        status: HTTP status.
        code: Stable machine-readable name.
        headers: Further headers.
    """

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


def from_failure(error: BaseException) -> ApiError:
    """The answer for whatever went wrong."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ClientDisconnect):  # before its body was complete
        return ApiError(CLIENT_LEFT, "client_left", "the client left")
    if isinstance(error, RefusedError):
        wait = str(max(1, math.ceil(error.retry_after_s)))
        status = 503 if error.cause in NOT_OPEN else 429
        code = "deadline" if error.cause == "expired" else error.cause
        return ApiError(status, code, str(error), {"Retry-After": wait})
    if isinstance(error, WorkerFailedError):
        return ApiError(503, "engine_failed", str(error), {"Retry-After": "1"})
    return ApiError(500, "internal", "something unexpected failed; see the server's log")


def error_response(error: ApiError, request_id: str, *, is_v2: bool = False) -> Response:
    """The body: `{"error": {code, message, request_id}}`, or the Open Inference Protocol's form."""
    message = str(error)
    body: Any = (
        {"error": message}
        if is_v2
        else {"error": {"code": error.code, "message": message, "request_id": request_id}}
    )
    return Response(
        json.dumps(body),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )
