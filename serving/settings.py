"""Settings of the server; the defaults suit one small machine."""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from amlr.errors import InputError

# Milliseconds; no client waits longer.
MAX_DEADLINE_MS = 600_000
# As browsers send it: lower case, and no slash at the end.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Bounds on one request. The bundle's own limits on pictures and texts apply as well.

    Attributes:
        max_body_bytes: Largest body, except of a JSON-lines stream.
        max_posts: Most posts in one request.
        max_text_chars: Longest text of a post.
        max_image_bytes: Largest picture file.
        max_line_bytes: Longest line of a JSON-lines stream.
        body_timeout_s: Longest pause of a client that is sending its body or reading its answer.
        header_timeout_s: Longest time from opening a connection to a complete request head.
    """

    max_body_bytes: int = 32_000_000
    max_posts: int = 256
    max_text_chars: int = 20_000
    max_image_bytes: int = 20_000_000
    max_line_bytes: int = 28_000_000
    body_timeout_s: float = 10.0
    header_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How posts of different requests share batches.

    Attributes:
        workers: Threads that call the engine at the same time.
        max_wait_s: Longest time the oldest post waits for others.
        max_posts: Most posts in a batch.
        max_tokens: Most (estimated) tokens in a batch.
        stuck_s: A batch that takes longer is given up and its worker replaced.
    """

    workers: int = 1
    max_wait_s: float = 0.005
    max_posts: int = 16
    max_tokens: int = 1024
    stuck_s: float = 60.0

    def __post_init__(self) -> None:
        _require_positive(self, may_be_zero=("max_wait_s",))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """Bounds on work that waits; past them the answer is 429.

    Attributes:
        max_posts: Most posts waiting.
        max_bytes: Most bytes of texts and pictures, waiting or still being received.
        deadline_s: Deadline of a request that names none.
        margin: Predicted times are multiplied by this before they are compared with deadlines.
    """

    max_posts: int = 1024
    max_bytes: int = 256_000_000
    deadline_s: float = 10.0
    margin: float = 1.25

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlSettings:
    """Fetching of pictures by address: off unless `allow` names hosts.

    Attributes:
        allow: Host names, exact or `*.example.org`; empty means no fetching at all.
        timeout_s: Whole time for one picture.
        max_redirects: Hops, each of which must be allowed too.
    """

    allow: tuple[str, ...] = ()
    timeout_s: float = 5.0
    max_redirects: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """All settings of the server.

    Attributes:
        api_keys: Accepted keys; empty means no key is asked for.
        cors_origins: Origins whose pages may ask from a browser, e.g. `https://example.org`, or
            `*` for all; empty means none. Cookies and other credentials are never allowed.
        log_texts: Whether logs may hold the texts of posts.
        page: Whether to serve the page at `/`.
        warm_up: Whether to measure the engine before saying ready; tests switch it off.
        shutdown_s: Longest wait for work under way when stopping.
    """

    limits: RequestLimits = field(default_factory=RequestLimits)
    batch: BatchSettings = field(default_factory=BatchSettings)
    queue: QueueSettings = field(default_factory=QueueSettings)
    urls: UrlSettings = field(default_factory=UrlSettings)
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    log_texts: bool = False
    page: bool = True
    warm_up: bool = True
    shutdown_s: float = 30.0

    def __post_init__(self) -> None:
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(
                    f"{origin!r} is no origin; write scheme, host and perhaps port, without a "
                    "path, e.g. https://example.org, or * for all"
                )


def _require_positive(settings: object, may_be_zero: tuple[str, ...] = ()) -> None:
    for name in type(settings).__dataclass_fields__:  # type: ignore[attr-defined]
        value = getattr(settings, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and name not in may_be_zero):
            raise InputError(f"{name} must be above 0 and finite, got {value}")


def environment_keys() -> tuple[str, ...]:
    """API keys from `AMLR_API_KEYS`, separated by commas."""
    return stripped_keys(os.environ.get("AMLR_API_KEYS", "").split(","))


def stripped_keys(lines: Iterable[str]) -> tuple[str, ...]:
    """Keys without the white space around them; blank ones left out."""
    return tuple(line.strip() for line in lines if line.strip())
