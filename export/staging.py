"""A bundle being written: a folder aside, its files listed, its name given at the end."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amlr.errors import ExportError
from amlr.runtime.manifest import MANIFEST, FileEntry
from amlr.whole import check_place, is_empty, staged_folder

CHUNK_BYTES = 1 << 20


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return FileEntry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Entries of every file below a folder except the manifest, by slash-separated name."""
    return {
        path.relative_to(folder).as_posix(): file_entry(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }


def check_target(out: Path) -> None:
    """Refuse, before any work, to write where no bundle can be or where something else is.

    Raises:
        InputError: The place is not writable, a full mount point, or the working folder.
        ExportError: `out` is neither a bundle nor empty.
    """
    check_place(out)
    if out.exists() and not (out / MANIFEST).is_file() and not is_empty(out):
        raise ExportError(f"{out} exists and is not a bundle; choose another --out or remove it")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its name when the block ends well.

    A failure removes the folder and leaves an older bundle of that name as it was.

    Raises:
        InputError: As `check_target`.
        ExportError: As `check_target`.
    """
    check_target(out)
    with staged_folder(out) as staging:
        yield staging
        _share(staging)


def _share(folder: Path) -> None:
    """Give files the usual permissions; some writers make theirs private to the user."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
