"""Arguments of a fleet. Ray Serve turns `name=value` into these models."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from amlr.errors import InputError
from amlr.runtime.options import EngineOptions
from amlr.serving.settings import BatchSettings, QueueSettings, ServerSettings

_ENGINE, _BATCH, _QUEUE = EngineOptions(), BatchSettings(), QueueSettings()
# Tokens of an ordinary post: how many of them fill a batch's token budget.
_POST_TOKENS = 32


class BundleChoice(BaseModel):
    """The bundle to serve: the `user_config` of the deployment. Changing it changes the bundle.

    Attributes:
        engine: A folder on every node, or an address that fsspec knows (`s3://`, `https://`, ...).
        manifest_sha256: Refuse a bundle whose manifest has another hash.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str = Field(min_length=1)
    manifest_sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Check plain values.

        Raises:
            InputError: One is unknown or wrong; the message names it.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            messages = []
            for item in error.errors():
                name = ".".join(str(part) for part in item["loc"])
                messages.append(f"{name}: {item['msg']}" if name else str(item["msg"]))
            hint = "see FleetArguments for names and ranges"
            raise InputError("; ".join([*messages, hint])) from error


class FleetArguments(BundleChoice):
    """Arguments of `build`.

    Attributes:
        provider: As in `EngineOptions`, like `precision`, `image_cache_mb`, `max_changed`, `check`,
            `answer_cache`, `image`, `sentinel` and `trust_file_times`, which hold for each replica.
        replicas: Replicas; with `max_replicas` the fewest.
        max_replicas: Scale up to so many on queue depth; None keeps the number fixed.
        cores: CPU cores of a replica; it is pinned to them, and calls its engine from as many
            threads.
        gpus: GPUs of a replica, or the share of one.
        pin: Whether replicas are pinned to cores.
        batch_posts: Most posts in a batch.
        batch_tokens: Most (estimated) tokens in a batch.
        wait_ms: Longest time the oldest post waits for others.
        deadline_ms: Deadline of a request that names none.
        queue_posts: Most posts waiting in a replica, and requests at each proxy.
        cache_dir: Where nodes keep fetched bundles, and what their engines compile or time.
        upscale_delay_s: How long demand must last before replicas are added.
        downscale_delay_s: How long it must be gone before they are removed.
        shutdown_s: Longest wait for accepted work when a replica or a bundle is retired.
        page: Whether to serve the page at `/`.
        log_level: Level of the replicas' log.
    """

    provider: str = _ENGINE.provider
    precision: str = _ENGINE.precision
    image_cache_mb: float = Field(default=_ENGINE.image_cache_mb, ge=0.0)
    max_changed: float = Field(default=_ENGINE.max_changed, ge=0.0)
    check: str = _ENGINE.check
    answer_cache: int = Field(default=_ENGINE.answer_cache, ge=0)
    image: str = _ENGINE.image
    sentinel: float = Field(default=_ENGINE.sentinel, ge=0.0, le=1.0)
    trust_file_times: bool = _ENGINE.trust_file_times
    replicas: int = Field(default=1, ge=1)
    max_replicas: int | None = Field(default=None, ge=1)
    cores: int = Field(default=1, ge=1)
    gpus: float = Field(default=0.0, ge=0.0)
    pin: bool = True
    batch_posts: int = Field(default=_BATCH.max_posts, ge=1)
    batch_tokens: int = Field(default=_BATCH.max_tokens, ge=1)
    wait_ms: float = Field(default=1000 * _BATCH.max_wait_s, ge=0.0)
    deadline_ms: int = Field(default=int(1000 * _QUEUE.deadline_s), ge=1)
    queue_posts: int = Field(default=_QUEUE.max_posts, ge=1)
    cache_dir: Path = Path("~/.cache/amlr/bundles")
    upscale_delay_s: float = Field(default=10.0, ge=0.0)
    downscale_delay_s: float = Field(default=300.0, ge=0.0)
    shutdown_s: float = Field(default=30.0, gt=0.0)
    page: bool = True
    log_level: str = Field(default="info", pattern="^(debug|info|warning)$")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas must be at least replicas ({self.replicas})")
        # Raises a ValueError, which pydantic reports, where an option of the engine is wrong.
        _ = self.engine_options
        return self

    @property
    def choice(self) -> BundleChoice:
        """The bundle alone."""
        engine = self.engine
        if "://" not in engine:
            # Replicas do not run in the folder of whoever starts them.
            engine = str(Path(engine).expanduser().absolute())
        return BundleChoice(engine=engine, manifest_sha256=self.manifest_sha256)

    @property
    def engine_options(self) -> EngineOptions:
        """The engine's options in each replica, whose workers have one thread each."""
        shared = {f.name for f in fields(EngineOptions)} - {"threads", "cache_dir"}
        cache_dir = self.cache_dir.expanduser() / "engines"
        return EngineOptions(
            threads=1, cache_dir=cache_dir, **{name: getattr(self, name) for name in shared}
        )

    @property
    def batch_requests(self) -> int:
        """Requests of one ordinary post that are computed at a time: a full batch per thread."""
        return self.cores * max(1, min(self.batch_posts, self.batch_tokens // _POST_TOKENS))

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that Serve may send to a replica before it is answered.

        Two batches a thread: one being computed, one forming. Fewer would leave the engine waiting
        for the proxy; more would only wait in this replica while another may be free.
        """
        return 2 * self.batch_requests

    def server_settings(self, api_keys: tuple[str, ...] = ()) -> ServerSettings:
        """Settings of the server within a replica."""
        return ServerSettings(
            batch=BatchSettings(
                workers=self.cores,
                max_wait_s=self.wait_ms / 1000,
                max_posts=self.batch_posts,
                max_tokens=self.batch_tokens,
            ),
            queue=QueueSettings(max_posts=self.queue_posts, deadline_s=self.deadline_ms / 1000),
            api_keys=api_keys,
            page=self.page,
            shutdown_s=self.shutdown_s,
        )
