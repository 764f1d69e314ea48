"""Where a training run stands, and the generators' states: what a resume point holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from amlr.errors import CheckpointError

STATE_FORMAT = "amlr-training-state"


@dataclass(kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: Current epoch, from 0.
        batch: Batches of this epoch already seen.
        best_f1: Best dev F1 so far, -1 before the first.
        bad_epochs: Epochs since then.
        history: Lines of `metrics.jsonl`.
        sums: Loss sums, tokens and seconds of the current epoch.
        is_done: No epoch left, or stopped early.
    """

    epoch: int = 0
    batch: int = 0
    best_f1: float = -1.0
    bad_epochs: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    is_done: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def add(self, **values: float) -> None:
        """Add to the epoch's sums."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value


def state_path(out: Path) -> Path:
    """Where the resume point of a run is kept."""
    return out.with_name(f"{out.stem}.state.pt")


def require_state(out: Path) -> Path:
    """Path of a run's resume point.

    Raises:
        CheckpointError: There is none.
    """
    path = state_path(out)
    if not path.exists():
        raise CheckpointError(
            f"no resume point at {path}; start without --resume, or give the --out of the run that "
            "was interrupted"
        )
    return path


def generator_states() -> dict[str, Any]:
    """States of torch's generators on every device."""
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_generators(state: Mapping[str, Any]) -> None:
    """Inverse of `generator_states`."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])
