"""The traffic to plan for: a JSON file with the rate over the day, the posts and the machines."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amlr.errors import InputError

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """Which posts carry pictures, and how often the same one comes again.

    Attributes:
        share: Share of the posts that carry one.
        distinct: Different pictures of a day.
        zipf: The n-th most frequent picture comes in proportion to n ** -zipf; 0 is even.
    """

    share: float = 0.0
    distinct: int = 1
    zipf: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One `amlr-serve`, as it will be started.

    Attributes:
        workers: Engine calls at a time, one core each.
        wait_ms: `--wait-ms`.
        batch_posts: `--batch-posts`.
        batch_tokens: `--batch-tokens`.
        image_cache_mb: `--image-cache-mb`.
    """

    workers: int = 1
    wait_ms: float = 5.0
    batch_posts: int = 16
    batch_tokens: int = 1024
    image_cache_mb: float = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is rented.

    Attributes:
        cores: Physical cores for replicas.
        price_per_hour: In any currency.
        currency: Its name, for the report.
    """

    cores: int = 2
    price_per_hour: float = 0.0
    currency: str = "USD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoscaling:
    """How the number of replicas follows the traffic.

    Attributes:
        minimum: Fewest replicas.
        maximum: Most replicas.
        start_s: From the decision to a replica that is ready.
        idle_s: How long fewer replicas must have been enough before one is stopped.
        utilisation: Share of a replica's capacity to aim at; None takes the highest that keeps p99.
    """

    minimum: int = 1
    maximum: int = 1000
    start_s: float = 30.0
    idle_s: float = 300.0
    utilisation: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
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

    rate_per_s: tuple[float, ...]
    p99_ms: float
    tokens: Mapping[int, float]
    pictures: Pictures = field(default_factory=Pictures)
    replica: Replica = field(default_factory=Replica)
    machine: Machine = field(default_factory=Machine)
    autoscaling: Autoscaling = field(default_factory=Autoscaling)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            InputError: Missing, no JSON, or a field that is unknown, missing or out of range.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}; see docs/scale.md") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """Check plain values.

        Raises:
            InputError: A field is unknown, missing or out of range; the message names it.
        """
        parts = {"pictures": Pictures, "replica": Replica, "machine": Machine,
                 "autoscaling": Autoscaling}  # fmt: skip
        given = _known(cls, value, "traffic")
        for name, part in parts.items():
            if name in given:
                given[name] = part(**_known(part, given[name], name))
        try:
            given["rate_per_s"] = tuple(float(rate) for rate in given["rate_per_s"])
            given["tokens"] = {int(k): float(v) for k, v in given["tokens"].items()}
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(
                'rate_per_s must be a list of numbers and tokens an object such as {"30": 1}'
            ) from error
        traffic = cls(**given)
        traffic._check()
        return traffic

    def _check(self) -> None:
        pictures, machine, scaling = self.pictures, self.machine, self.autoscaling
        utilisation = scaling.utilisation
        rules = {
            "rate_per_s needs at least one rate, none below 0, one above": self.rate_per_s
            and min(self.rate_per_s) >= 0 < max(self.rate_per_s),
            "tokens needs lengths of at least 1 with shares above 0": self.tokens
            and min(self.tokens) >= 1
            and min(self.tokens.values()) >= 0 < sum(self.tokens.values()),
            "p99_ms must be above 0": self.p99_ms > 0,
            "pictures.share must be from 0 to 1": 0 <= pictures.share <= 1,
            "pictures.distinct must be at least 1": pictures.distinct >= 1,
            "pictures.zipf must be from 0 to 3": 0 <= pictures.zipf <= 3,
            "replica needs at least one worker and one post a batch, and no negative number": min(
                self.replica.workers, self.replica.batch_posts, self.replica.batch_tokens
            )
            >= 1
            and min(self.replica.wait_ms, self.replica.image_cache_mb) >= 0,
            "machine.cores must be at least replica.workers": machine.cores >= self.replica.workers,
            "machine.price_per_hour must not be negative": machine.price_per_hour >= 0,
            "autoscaling.minimum must be from 1 to autoscaling.maximum": 1
            <= scaling.minimum
            <= scaling.maximum,
            "autoscaling times must not be negative": min(scaling.start_s, scaling.idle_s) >= 0,
            "autoscaling.utilisation must be above 0 and below 1": utilisation is None
            or 0 < utilisation < 1,
        }
        for rule, holds in rules.items():
            if not holds:
                raise InputError(f"traffic: {rule}")

    def rate_at(self, seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Posts a second at times of the day; straight lines between the middles of the parts."""
        count = len(self.rate_per_s)
        middles = (np.arange(count) + 0.5) * _DAY_S / count
        return np.interp(seconds % _DAY_S, middles, self.rate_per_s, period=_DAY_S)

    def draw_tokens(self, count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
        """Lengths of posts."""
        lengths = np.array(sorted(self.tokens))
        shares = np.array([self.tokens[int(length)] for length in lengths])
        return generator.choice(lengths, size=count, p=shares / shares.sum()).astype(np.int64)


def _known(kind: type, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"traffic: {where} must be an object, got {value!r}")
    names = {item.name: item for item in fields(kind)}
    unknown = sorted(set(value) - set(names))
    if unknown:
        raise InputError(f"traffic: {where} has no {unknown[0]!r}; expected {', '.join(names)}")
    missing = [
        name
        for name, item in names.items()
        if name not in value and item.default is MISSING and item.default_factory is MISSING
    ]
    if missing:
        raise InputError(f"traffic: {where} needs {missing[0]!r}; see docs/scale.md")
    for name, item in value.items():
        if kind is not Traffic and name != "currency" and not _is_number(item, name):
            raise InputError(f"traffic: {where}.{name} must be a number, got {item!r}")
    return dict(value)


def _is_number(value: Any, name: str) -> bool:
    if value is None:
        return name == "utilisation"
    return isinstance(value, int | float) and not isinstance(value, bool)
