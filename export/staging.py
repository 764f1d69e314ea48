"""A bundle in the making: a folder beside its place, its files listed, renamed at the end."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from amlr.errors import BundleError, ExportError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import MANIFEST, FileEntry, Manifest
from amlr.whole import check_place, is_empty, staged_folder


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


class StagedBundle:
    """A bundle that is being written. A file is hashed once, and again only after it has changed.

    Attributes:
        folder: Where its files are.
        manifest: As last saved.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Begin with a folder and the manifest that its files will be listed in."""
        self.folder, self.manifest = folder, manifest
        # Time and size of each file when its entry was made.
        self._entries: dict[str, tuple[tuple[int, int], FileEntry]] = {}

    def copy(self, source: Bundle) -> None:
        """Copy every listed file of a bundle, and save.

        The source's hashes are kept: a file that was damaged there is refused here as well.

        Raises:
            BundleError: A file has another size than the source lists.
        """
        for name, entry in source.manifest.files.items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            # Copied, not linked: onnx refuses weights with a second hard link.
            shutil.copyfile(source.path / name, target)
            if target.stat().st_size != entry.bytes:
                raise BundleError(
                    f"{source.path / name} has {target.stat().st_size} bytes, expected "
                    f"{entry.bytes}; export the bundle again"
                )
            self._entries[name] = (_state(target), entry)
        self.save()

    def save(self, **changes: Any) -> None:
        """Write the manifest with the folder's files, and with some fields changed."""
        entries: dict[str, tuple[tuple[int, int], FileEntry]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and path.name != MANIFEST:
                name, state = path.relative_to(self.folder).as_posix(), _state(path)
                known = self._entries.get(name)
                if known is None or known[0] != state:
                    known = state, file_entry(path)
                entries[name] = known
        self._entries = entries
        files = {name: entry for name, (_, entry) in entries.items()}
        self.manifest = replace(self.manifest, **changes, files=files)
        (self.folder / MANIFEST).write_text(self.manifest.to_json(), encoding="utf-8")

    def open(self) -> Bundle:
        """The bundle as it was last saved."""
        return Bundle.open(self.folder)


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


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
