"""The traffic to plan for: a JSON file with the rate over the day, the posts and the machines."""

from pathlib import Path
from typing import Annotated, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError, model_validator

from amlr.errors import InputError
from amlr.runtime.text_files import read_text

_DAY_S = 86_400.0
_Share = Annotated[float, Field(ge=0)]
_Length = Annotated[int, Field(ge=1)]


class _Part(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """An object of the file: unknown fields and values of another kind are refused."""


class Pictures(_Part, frozen=True):
    """Which posts carry pictures, and how often the same one comes again.

    Attributes:
        share: Share of the posts that carry one.
        distinct: Different pictures of a day.
        zipf: The n-th most frequent picture comes in proportion to n ** -zipf; 0 is even.
    """

    share: float = Field(default=0.0, ge=0, le=1)
    distinct: int | float = Field(default=1, ge=1)
    zipf: float = Field(default=0.0, ge=0, le=3)

    def chances(self, hits: float) -> tuple[float, float, float]:
        """Probability of each of `costs.STATES`, with a share `hits` of known pictures."""
        return 1 - self.share, self.share * hits, self.share * (1 - hits)


class Replica(_Part, frozen=True):
    """One `amlr-serve`, as it will be started.

    Attributes:
        workers: Engine calls at a time, one core each.
        wait_ms: `--wait-ms`.
        batch_posts: `--batch-posts`.
        batch_tokens: `--batch-tokens`.
        image_cache_mb: `--image-cache-mb`.
    """

    workers: int = Field(default=1, ge=1)
    wait_ms: float = Field(default=5.0, ge=0)
    batch_posts: int = Field(default=16, ge=1)
    batch_tokens: int = Field(default=1024, ge=1)
    image_cache_mb: float = Field(default=256.0, ge=0)


class Machine(_Part, frozen=True):
    """What is rented.

    Attributes:
        cores: Physical cores for replicas.
        price_per_hour: In any currency.
        currency: Its name, for the report.
    """

    cores: int = Field(default=2, ge=1)
    price_per_hour: float = Field(default=0.0, ge=0)
    currency: str = "USD"


class Autoscaling(_Part, frozen=True):
    """How the number of replicas follows the traffic.

    Attributes:
        minimum: Fewest replicas.
        maximum: Most replicas.
        start_s: From the decision to a replica that is ready.
        idle_s: How long fewer replicas must have been enough before one is stopped.
        utilisation: Share of a replica's capacity to aim at; None takes the highest that keeps p99.
    """

    minimum: int = Field(default=1, ge=1)
    maximum: int = Field(default=1000, ge=1)
    start_s: float = Field(default=30.0, ge=0)
    idle_s: float = Field(default=300.0, ge=0)
    utilisation: float | None = Field(default=None, gt=0, lt=1)


class Traffic(_Part, frozen=True):
    """A day of requests, one post each.

    Attributes:
        rate_per_s: Mean posts a second over the day: equally long parts, the first from midnight.
        p99_ms: Latency that 99 of 100 answers must keep; also the deadline of requests.
        tokens: Estimated tokens of a text (characters / 4 + 2) and their share of the posts.
        pictures: Pictures.
        replica: One server.
        machine: What servers run on.
        autoscaling: How their number follows the rate.
    """

    rate_per_s: tuple[_Share, ...] = Field(min_length=1)
    p99_ms: float = Field(gt=0)
    tokens: dict[_Length, _Share] = Field(min_length=1)
    pictures: Pictures = Pictures()
    replica: Replica = Replica()
    machine: Machine = Machine()
    autoscaling: Autoscaling = Autoscaling()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            InputError: Missing, no JSON, or a field that is unknown, missing or out of range.
        """
        return cls.parse(read_text(path, "a load, as docs/howto/capacity.md describes"))

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read and check JSON.

        Raises:
            InputError: No JSON, or a field is unknown, missing or out of range; names it.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise InputError(
                f"traffic: {f'{name}: ' if name else ''}{first['msg']}; see docs/howto/capacity.md"
            ) from error

    @model_validator(mode="after")
    def _check(self) -> Self:
        scaling, workers = self.autoscaling, self.replica.workers
        rules = {
            "rate_per_s needs a rate above 0": max(self.rate_per_s) > 0,
            "tokens needs a share above 0": sum(self.tokens.values()) > 0,
            f"machine.cores must be at least replica.workers, {workers}": self.machine.cores
            >= workers,
            f"autoscaling.minimum must be at most autoscaling.maximum, {scaling.maximum}": (
                scaling.minimum <= scaling.maximum
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise ValueError(rule)
        return self

    def rate_at(self, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Posts a second at times of the day; straight lines between the middles of the parts."""
        count = len(self.rate_per_s)
        middles = (np.arange(count) + 0.5) * _DAY_S / count
        return np.interp(seconds % _DAY_S, middles, self.rate_per_s, period=_DAY_S)

    @property
    def shares(self) -> dict[int, float]:
        """Share of the posts by length, summing to 1."""
        total = sum(self.tokens.values())
        return {tokens: share / total for tokens, share in sorted(self.tokens.items())}
