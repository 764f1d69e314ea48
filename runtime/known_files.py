"""Files recognised without reading them, by what the system says of them; for pictures opt-in.

A file counts as the one read before while its device, inode, size, modification and change times
are the same. A file that changed less than two seconds ago is always read: within a clock tick it
could change once more and keep its times. What escapes this are writes through a memory map whose
times the system has not updated yet, and file systems that keep no change time.
"""

import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from amlr.runtime.image import ImageLimits, content_key, read_source

# Files to remember; some 300 bytes each.
MOST_FILES = 50_000
_YOUNG_NS = 2_000_000_000


class FileStamp(NamedTuple):
    """What names a file's content as long as it is not written to."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def file_stamp(source: Any) -> FileStamp | None:
    """Stamp of a file; None for what is no regular file, or a young one."""
    if not isinstance(source, (str, Path)):
        return None
    try:
        info = Path(source).stat()
    # What is wrong with it, reading will say. An embedded NUL is a ValueError.
    except (OSError, ValueError):
        return None
    newest = max(info.st_mtime_ns, info.st_ctime_ns)
    if not stat.S_ISREG(info.st_mode) or time.time_ns() - newest < _YOUNG_NS:
        return None
    return FileStamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


class KnownFiles:
    """Content keys of files that were read. Safe for several threads."""

    def __init__(self) -> None:
        """Know nothing."""
        self._keys: dict[FileStamp, str] = {}
        self._lock = threading.Lock()

    def get(self, stamp: FileStamp) -> str | None:
        """The content key of a file, if it was read."""
        return self._keys.get(stamp)

    def keep(self, source: Any, stamp: FileStamp, key: str) -> None:
        """Remember a file that was read since the stamp was taken, unless it has another by now."""
        if file_stamp(source) != stamp:
            return
        with self._lock:
            if len(self._keys) >= MOST_FILES:
                self._keys = {}
            self._keys[stamp] = key


def read_keyed(
    source: Any,
    limits: ImageLimits,
    files: KnownFiles | None,
    is_enough: Callable[[str], bool] = lambda key: True,
) -> tuple[str, Any]:
    """Key of a picture and its content; in its place the source, if the key of that file is known.

    Args:
        source: As for `read_source`.
        limits: What to refuse.
        files: Files that need not be read again; None reads them all.
        is_enough: Whether a known key will do without the content.

    Raises:
        InputError: As `read_source` and `content_key`.
    """
    stamp = None if files is None else file_stamp(source)
    if files is None or stamp is None:
        content = read_source(source, limits)
        return content_key(content, limits), content
    key = files.get(stamp)
    if key is not None and is_enough(key):
        return key, source
    content = read_source(source, limits)
    key = content_key(content, limits)
    files.keep(source, stamp, key)
    return key, content
