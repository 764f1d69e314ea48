"""Work that is done once for a whole run of the tests, whichever process comes to it first."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def once(place: Path, make: Callable[[Path], object]) -> Path:
    """Make a file or folder, unless another process has; while one does, the others wait.

    Args:
        place: Where it is to be. A lock file stays beside it.
        make: Takes the place and fills it.
    """
    with place.with_name(f".{place.name}.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Whoever waited opened the file before it was written to. What failed on the way is not
        # taken for finished.
        if lock.seek(0, os.SEEK_END) == 0:
            make(place)
            lock.write("done")
    return place
