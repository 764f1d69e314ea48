"""Cores of a replica: claimed by file locks, which end with the process however it ends."""

import contextlib
import os
import sys
from pathlib import Path


class CoreClaim:
    """Cores that no other replica of this node holds.

    Attributes:
        cores: The cores, in order; empty where nothing could be claimed.
    """

    def __init__(self, folder: Path, count: int) -> None:
        """Claim and pin.

        Args:
            folder: Where this node's replicas keep their locks.
            count: How many cores are wanted. Where fewer are free, nothing is pinned: half a
                claim would be slower than none.
        """
        self.cores: tuple[int, ...] = ()
        self._handles: list[int] = []
        # Neither macOS nor Windows pins processes this way.
        if sys.platform == "linux":
            self.cores = self._claimed(folder.expanduser(), count)
            if self.cores:
                pin_process(self.cores)

    def _claimed(self, folder: Path, count: int) -> tuple[int, ...]:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        cores: list[int] = []
        for core in sorted(os.sched_getaffinity(0)):
            if len(cores) == count:
                break
            handle = os.open(
                folder / f"core-{core}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(handle)
                continue
            self._handles.append(handle)
            cores.append(core)
        if len(cores) < count:
            self.release()
            return ()
        return tuple(cores)

    def release(self) -> None:
        """Let others have them."""
        for handle in self._handles:
            os.close(handle)
        self._handles, self.cores = [], ()


def pin_process(cores: tuple[int, ...]) -> None:
    """Pin every thread there is; threads that start later inherit it."""
    for task in Path("/proc/self/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(int(task.name), cores)
