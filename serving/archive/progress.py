"""One line on stderr as parts are finished: rows, rate of this run, time left."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

_EVERY_S = 10.0


def progress_line(done: int, total: int, fresh: int, seconds: float) -> str:
    """What is said.

    Args:
        done: Rows that are finished, those of an earlier run included.
        total: Rows of the whole input.
        fresh: Rows that this run has tagged.
        seconds: How long it took for them.
    """
    rate = fresh / max(seconds, 1e-9)
    text = f"tagged {done}/{total} ({100 * done // max(total, 1)} %), {rate:.1f}/s"
    if done < total and fresh:
        text += f", {(total - done) / rate:.0f} s left"
    return text


def show_progress(
    reports: Iterable[dict[str, Any]], total: int, resumed: int
) -> Iterator[dict[str, Any]]:
    """Yield the reports of parts; on a terminal each redraws the line, in logs one in ten seconds.

    Args:
        reports: As parts are finished; each has its `rows`.
        total: Rows of the whole input.
        resumed: Rows that were finished before.
    """
    begun = last = time.monotonic()
    is_tty = sys.stderr.isatty()
    fresh = 0
    for report in reports:
        yield report
        fresh += report["rows"]
        now = time.monotonic()
        is_over = resumed + fresh == total
        if is_tty or now - last >= _EVERY_S or is_over:
            line = progress_line(resumed + fresh, total, fresh, now - begun)
            ends = "" if is_tty and not is_over else "\n"
            print(("\r\x1b[K" if is_tty else "") + line, file=sys.stderr, end=ends, flush=True)
            last = now
