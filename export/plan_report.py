"""`amlr-export --plan-buckets`: posts in; plans for some graph counts and a fitting profile out."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from amlr.errors import InputError
from amlr.export.planner import (
    BucketPlan,
    PlanLimits,
    measure_traffic,
    plan_buckets,
    plan_table,
    profile_for,
)
from amlr.export.tensorrt.profiles import Profile
from amlr.runtime.bundle import Bundle
from amlr.runtime.jsonl import parse_line
from amlr.runtime.results import Post

GRAPHS = (1, 4, 8, 16)


def plan_report(
    bundle: Bundle,
    posts: Path,
    *,
    graphs: Sequence[int] = GRAPHS,
    batches: tuple[int, ...] = (),
    memory_mb: float = 2048.0,
) -> tuple[list[str], dict[str, Any]]:
    """Plan for the posts of a JSON-lines file.

    Args:
        bundle: Whose tokenizer, window rule and width count.
        posts: Lines `{"text": ...}`, as `amlr-tag` reads them.
        graphs: How many captured graphs to plan for; one row each.
        batches: Batch sizes to capture for every bucket; none: one is chosen for each.
        memory_mb: Memory cap of each plan.

    Returns:
        Lines to print, and the same as a dict that `read_plan` reads back.

    Raises:
        InputError: The file cannot be read, or the limits cannot be met.
    """
    traffic = measure_traffic(bundle, _read(posts))
    limits = PlanLimits(
        width=bundle.manifest.width,
        least_tokens=bundle.manifest.scales,
        batches=batches,
        memory_mb=memory_mb,
    )
    plans: list[BucketPlan] = [plan_buckets(traffic, count, limits) for count in graphs]
    profile = profile_for(bundle, plans[-1])
    lines = [f"{len(traffic.tokens_n)} windows of {posts.name}", *plan_table(plans)]
    for name, extent in profile.to_dict().items():
        lines.append(f"profile {name}: {extent['min']} / {extent['opt']} / {extent['max']}")
    values = {
        "windows": len(traffic.tokens_n),
        "plans": [plan.to_dict() for plan in plans],
        "profile": profile.to_dict(),
    }
    return lines, values


def read_plan(path: Path) -> tuple[Profile, tuple[tuple[int, int], ...]]:
    """Profile and buckets of a report that `plan_report` wrote as JSON.

    Returns:
        The profile, and steps and units of the buckets of the largest plan.

    Raises:
        InputError: The file holds no plan.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        buckets = values["plans"][-1]["buckets"]
        return (
            Profile.from_dict(values["profile"]),
            tuple((int(b["tokens"]), int(b["units"])) for b in buckets),
        )
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{path} holds no plan ({error!r}); make one with: "
            "amlr-export --from BUNDLE --plan-buckets POSTS.jsonl"
        ) from error


def _read(path: Path) -> Iterator[Post]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                parsed = parse_line(number, line, None)
                if parsed.post is None:
                    reason = parsed.error["message"] if parsed.error else "no post"
                    raise InputError(f"{path}: {reason}")
                # Pictures do not change how long a text is.
                yield Post(parsed.post.text, None, parsed.post.words)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
