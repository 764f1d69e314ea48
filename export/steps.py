"""Steps of an export, announced as they begin, and how long the rest will take.

What takes the time is answering posts, and how many each step answers is known beforehand. The rest
is estimated from the seconds that posts have taken in this step and in the last one that has any.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import click

# Seconds between two lines about one step, in logs and on a terminal, where it is redrawn.
_LOG_EVERY_S, _DRAW_EVERY_S = 30.0, 0.2
# Fewer answers say nothing about the rest.
_LEAST_POSTS = 32
log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of an export.

    Attributes:
        label: What it does.
        run: Does it.
        posts: About how many answers to posts pass through `counted`; 0 where it takes little
            time, None where nobody knows beforehand how much.
    """

    label: str
    run: Callable[[], object]
    posts: int | None = 0


def run_steps(steps: Sequence[Step]) -> None:
    """Run steps in order; log each, and what remains where that can be told."""
    progress = _Progress(steps)
    token = _running.set(progress)
    try:
        progress.run()
    finally:
        _running.reset(token)


def counted(items: Iterable[T], unit: str = "posts") -> Iterable[T]:
    """Pass answers to posts on, or other work; they count for the step that runs, if any does."""
    progress = _running.get()
    return items if progress is None else progress.counted(items, unit)


def show(text: str) -> None:
    """Show now and then how far the running step is; an empty text wipes what was drawn."""
    progress = _running.get()
    if progress is not None:
        progress.show(text)


class _Progress:
    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps, self._number = steps, 0
        # Of the last step that has posts; then of this one.
        self._posts, self._seconds = 0, 0.0
        self._done, self._begun = 0, 0.0
        self._shown, self._has_drawn = 0.0, False

    def run(self) -> None:
        for number, step in enumerate(self._steps, start=1):
            self._number = number
            self._done, self._begun = 0, time.monotonic()
            self._shown = self._begun
            log.info(f"{self._place()}: {step.label}{self._left()}")
            step.run()
            if step.posts and self._done:
                self._posts = self._done
                self._seconds = time.monotonic() - self._begun

    def counted(self, items: Iterable[T], unit: str) -> Iterator[T]:
        try:
            for item in items:
                yield item
                self._done += 1
                self.show(self._line(unit))
        finally:
            self.show("")

    def show(self, text: str) -> None:
        draws = sys.stderr.isatty() and log.isEnabledFor(logging.INFO)
        now = time.monotonic()
        if not text:
            if self._has_drawn:
                click.echo("\r\x1b[K", err=True, nl=False)
            self._has_drawn = False
        elif now - self._shown >= (_DRAW_EVERY_S if draws else _LOG_EVERY_S):
            self._shown = now
            self._has_drawn |= draws
            if draws:
                click.echo("\r\x1b[K" + text, err=True, nl=False)
            else:
                log.info(text)

    def _place(self) -> str:
        return f"step {self._number} of {len(self._steps)}"

    def _line(self, unit: str) -> str:
        total = self._steps[self._number - 1].posts
        done = f"{self._done} {unit}"
        if total:
            done = f"{self._done}/{total} {unit} ({100 * self._done // total} %)"
        return f"  {self._place()}: {done}{self._left()}"

    def _left(self) -> str:
        step, *later = self._steps[self._number - 1 :]
        posts, seconds = self._posts, self._seconds
        if step.posts and self._done:
            posts += self._done
            seconds += time.monotonic() - self._begun
        left = max(0, (step.posts or 0) - self._done) + sum(other.posts or 0 for other in later)
        if posts < _LEAST_POSTS or not left:
            return ""
        is_known = all(other.posts is not None for other in (step, *later))
        left_s = left * seconds / posts
        text = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        return f", {'about' if is_known else 'at least'} {text} left"


_running: ContextVar[_Progress | None] = ContextVar("_running", default=None)
