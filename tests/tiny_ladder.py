"""A tiny bundle with CPU variants."""

import shutil
from pathlib import Path

from amlr.export.ladder import ladder
from amlr.export.ladder.ladder import LadderOptions, add_variants


def tiny_ladder(plan: Path, out: Path) -> Path:
    """Copy a bundle and add int8 and bf16 to the copy."""
    shutil.copytree(plan, out)
    ladder.SEARCH_POSTS = ladder.CALIBRATION_POSTS = 24
    add_variants(out, LadderOptions())
    return out
