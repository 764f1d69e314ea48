"""The builder's own progress as a bar on stderr."""

import sys
import time
from typing import Any

import click


def progress_monitor(api: Any, label: str, *, after_s: float = 2.0) -> Any:
    """Make an `IProgressMonitor` that draws the outermost phase once the build lasts.

    Args:
        api: The TensorRT module.
        label: What is being built.
        after_s: Seconds of silence before the first line.
    """

    class Bar(api.IProgressMonitor):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)
            self.start = self.last = time.monotonic()
            self.steps: dict[str, int] = {}
            self.parents: dict[str, str | None] = {}
            self.shown = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.parents[phase_name] = parent_phase

        def step_complete(self, phase_name: str, step: int) -> bool:
            if self.parents.get(phase_name) is None:
                self.draw(phase_name, step + 1)
            return True  # False would cancel the build

        def phase_finish(self, phase_name: str) -> None:
            if self.parents.pop(phase_name, None) is None and self.shown and sys.stderr.isatty():
                click.echo("", err=True)
                self.shown = False
            self.steps.pop(phase_name, None)

        def draw(self, phase: str, done: int) -> None:
            now, is_tty = time.monotonic(), sys.stderr.isatty()
            if now - self.start < after_s or now - self.last < (0.2 if is_tty else 10.0):
                return
            self.last, self.shown = now, True
            text = f"{label}: {phase} {done}/{self.steps.get(phase, done)}"
            click.echo(("\r\x1b[K" if is_tty else "") + text, err=True, nl=not is_tty)

    return Bar()
