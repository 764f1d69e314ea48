"""Files at any fsspec address; writes appear whole under their name or not at all."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from amlr.errors import InputError


def open_location(address: str) -> tuple[Any, str]:
    """File system and path of an address; plain paths are local."""
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot open {address!r}: {error}") from error
    return fs, path


def is_local(fs: Any) -> bool:
    """Whether files of this system have ordinary paths here."""
    protocol = fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)
    return "file" in protocol


def fingerprint(address: str) -> str:
    """Hash of a local file's content; elsewhere the store's own tag (etag or time and size)."""
    fs, path = open_location(address)
    try:
        if not is_local(fs):
            return str(fs.ukey(path))
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the input {address}: {error}") from error


class Folder:
    """The output folder of a run."""

    def __init__(self, address: str) -> None:
        """Open without creating anything."""
        self.fs, self.root = open_location(address)

    def path(self, name: str) -> str:
        """Full path of a name."""
        return f"{self.root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        """Names in the folder, sorted; empty where it is absent."""
        try:
            found = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(name).rstrip("/").rpartition("/")[2] for name in found)

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where it is absent."""
        try:
            return int(self.fs.info(self.path(name))["size"])
        except FileNotFoundError:
            return None

    def aside(self, suffix: str) -> str:
        """A fresh name to write under before `publish`."""
        self.fs.makedirs(self.path("_run/aside"), exist_ok=True)
        return f"_run/aside/{uuid.uuid4().hex}{suffix}"

    def publish(self, aside: str, name: str) -> None:
        """Give a finished file its name."""
        source, target = self.path(aside), self.path(name)
        self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        if is_local(self.fs):
            with Path(source).open("rb") as file:
                os.fsync(file.fileno())
            Path(source).replace(target)
        else:
            self.fs.mv(source, target)

    def write_json(self, name: str, values: Any) -> None:
        """Write JSON aside, then give it its name."""
        aside = self.aside(".json")
        with self.fs.open(self.path(aside), "wb") as file:
            file.write(json.dumps(values, ensure_ascii=False, indent=1).encode())
        self.publish(aside, name)

    def read_json(self, name: str) -> Any:
        """Read a JSON file; None where it is absent."""
        try:
            with self.fs.open(self.path(name), "rb") as file:
                return json.loads(file.read())
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        """Remove a file or folder, if it is there."""
        if self.fs.exists(self.path(name)):
            self.fs.rm(self.path(name), recursive=True)
