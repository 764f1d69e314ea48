"""A bundle being written: a folder aside, its files listed, its name given at the end."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amlr.errors import ExportError
from amlr.runtime.manifest import MANIFEST, FileEntry
from amlr.whole import staged_folder

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
    """Refuse to replace something that is not a bundle.

    Raises:
        ExportError: `out` exists and holds no manifest.
    """
    if out.exists() and not (out / MANIFEST).is_file():
        raise ExportError(f"{out} exists and is not a bundle; choose another --out or remove it")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` that takes its name when the block ends well.

    A failure removes the folder and leaves an older bundle of that name as it was.

    Raises:
        ExportError: `out` exists and is not a bundle.
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
