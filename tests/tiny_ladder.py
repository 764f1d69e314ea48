"""A tiny bundle with CPU variants."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from amlr.export import radii
from amlr.export.ladder import ladder
from amlr.export.ladder.ladder import steps_of_cpu_variants
from amlr.export.options import CPU_PRECISIONS
from amlr.export.posts import read_posts
from amlr.export.samples import sample_posts
from amlr.export.staging import StagedBundle
from amlr.export.steps import run_steps
from amlr.runtime.bundle import Bundle


def write_posts(folder: Path, *, images: int, count: int = 160) -> Path:
    """A file of posts as a user would give it; two of three carry a picture, if there are any."""
    lines = []
    for number, post in enumerate(sample_posts(count, images=images, seed=1)):
        line = {"text": post.text}
        if isinstance(post.image, bytes):
            line["image"] = f"{number}.png"
            (folder / line["image"]).write_bytes(post.image)
        lines.append(json.dumps(line))
    file = folder / "posts.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def tiny_ladder(
    plan: Path,
    out: Path,
    *,
    calib: Path | None = None,
    precisions: Sequence[str] = CPU_PRECISIONS,
) -> Path:
    """Copy a bundle and add CPU variants to the copy, calibrated on posts given or invented."""
    bundle = small_ladder(plan, out)
    run_steps(steps_of_cpu_variants(bundle, precisions, read_posts(calib)))
    return out


def small_ladder(plan: Path, out: Path) -> StagedBundle:
    """Copy a bundle to add CPU variants to, which are measured on a few posts only."""
    shutil.copytree(plan, out)
    ladder.CALIBRATION_POSTS = 24
    radii.LEAST_POSTS, radii.LEAST_PHOTOS = 20, 4
    ladder.WARM_UP = 4
    return StagedBundle(out, Bundle.open(out).manifest)
