"""Write aside, then rename: a file or folder is whole under its name, or not there at all."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from amlr.errors import InputError

# What an empty volume of ext4 holds.
_VOLUME_LEFTOVERS = frozenset({"lost+found"})


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its name when the block ends well.

    A failure, Ctrl-C or SIGTERM removes the folder and leaves an older one of that name as it was.
    Where `out` is a link, the folder it leads to is replaced and the link stays. A mount point
    cannot be renamed: an empty one is filled in place at the very end, a full one is refused.

    Raises:
        InputError: `out` cannot be written there; nothing was done.
    """
    target = check_place(out)
    staging = target.with_name(f".{target.name}.partial-{os.getpid()}")
    if target.exists() and _is_mount(target):
        # Its own file system: files are renamed into place, never copied over each other.
        staging = target / f".partial-{os.getpid()}"
    with stop_signals_raise():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            yield staging
            _replace(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_place(out: Path) -> Path:
    """Where a folder at `out` would really be; refused before any work if it cannot be.

    Raises:
        InputError: `out` is a link to itself, a full mount point, or has no name of its own.
    """
    try:
        target = out.resolve()
        # Looks at the file system, which refuses names that are too long.
        is_there = target.exists()
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot write {out}: {reason}; choose another place") from error
    if target == Path.cwd() or target in Path.cwd().parents:
        raise InputError(
            f"cannot replace {out}: the working folder is in it and would be removed with it; call "
            f"the command from elsewhere and name the folder {target}"
        )
    if is_there and _is_mount(target):
        if not is_empty(target):
            raise InputError(
                f"{out} is a mount point that is not empty, so it cannot be replaced as a whole; "
                f"give a folder inside it, such as {out / 'amlr.plan'}"
            )
        _require_writable(out, target)
        return target
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"cannot write {out}: {parent} is a file; choose another place")
    _require_writable(out, parent)
    return target


def check_file(path: Path) -> None:
    """Refuse, before any work, a file that `write_whole` could not write.

    Raises:
        InputError: Its folder cannot be written to.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        return
    folder = target.parent
    while not folder.exists():
        folder = folder.parent
    _require_writable(path, folder)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but what a new file system brings."""
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= _VOLUME_LEFTOVERS


def _is_mount(path: Path) -> bool:
    # A folder of the same file system may be mounted as well; only the kernel's table shows it.
    if path.is_mount():
        return True
    try:
        rows = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    # Blanks in names are written as octal numbers.
    name = str(path).replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")
    return any(row.split(" ")[4] == name for row in rows)


def _require_writable(out: Path, folder: Path) -> None:
    """Make and remove a folder: permissions alone say nothing of read-only file systems."""
    probe = folder / f".amlr-{os.getpid()}-{threading.get_ident()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(
            f"cannot write {out}: {error.strerror} in {folder}; change its permissions, or choose "
            "another place"
        ) from error


@contextmanager
def stop_signals_raise() -> Iterator[None]:
    """SIGTERM ends the block by an exception, as Ctrl-C does, so that it can clean up.

    Where the program has a handler of its own, or this is not the main thread, nothing changes.
    """
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        # A second one must not cut the cleaning short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def write_whole(path: Path, text: str) -> None:
    """Write a text file; its folder is made where it is absent.

    What is no ordinary file (a device, a pipe) is written to, not replaced.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with replacing(target) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name beside a file's; what is written there takes its place when the block ends well.

    The folder is made where it is absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _replace(staging: Path, out: Path) -> None:
    if staging.parent == out:
        # An empty volume. The manifest's name sorts after folders here, but whatever the order,
        # a reader that comes too early finds files missing and says so.
        for path in sorted(staging.iterdir(), key=lambda path: (path.is_file(), path.name)):
            path.rename(out / path.name)
        return
    if not out.exists():
        staging.rename(out)
        return
    # A folder cannot be renamed over a full one: the old one steps aside first, and comes back if
    # the second rename fails.
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        staging.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
