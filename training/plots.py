"""A picture of a training run: losses by update, dev F1 by epoch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def plot_metrics(history: Sequence[Mapping[str, Any]], path: Path) -> str | None:
    """Draw losses and dev F1.

    Args:
        history: Lines of `metrics.jsonl`.
        path: PNG to write.

    Returns:
        The path, or None when matplotlib is not installed or there is nothing to draw.
    """
    epochs = [line for line in history if line["kind"] == "epoch" and "dev_f1" in line]
    steps = [line for line in history if line["kind"] == "step"]
    if not epochs:
        return None
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    # A figure of its own: pyplot would pick a display backend and keep global state.
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    if steps:
        updates = [line["update"] for line in steps]
        for name, label in (("span_loss", "span head"), ("crf_loss", "token head")):
            left.plot(updates, [line[name] for line in steps], label=label)
        left.set(xlabel="update", ylabel="loss", yscale="log")
        left.legend()
    numbers = [line["epoch"] for line in epochs]
    for name in epochs[0]["dev_f1"]:
        right.plot(numbers, [100 * line["dev_f1"][name] for line in epochs], "o-", label=name)
    right.set(xlabel="epoch", ylabel="dev F1, strict, %", xticks=numbers)
    right.legend()
    figure.savefig(path, dpi=110)
    return str(path)
