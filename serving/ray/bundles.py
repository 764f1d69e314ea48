"""Bundles by address: fetched once per node, checked against their manifest, then renamed in place.

A folder is used where it lies. Anything with `://` is fetched into `CACHE/<manifest sha256>`.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from amlr.errors import AmlrError, BackendUnavailableError, BundleError
from amlr.runtime.bundle import check_file, read_manifest
from amlr.runtime.manifest import MANIFEST, FileEntry, Manifest
from amlr.whole import staged_folder

T = TypeVar("T")
LOG = logging.getLogger("amlr.serving.ray.bundles")
_MANIFEST_LIMIT = 32_000_000
_PIECE = 4_000_000
_TRIES = 3
_PAUSE_S = 0.5


def fetch_bundle(address: str, cache_dir: Path, manifest_sha256: str | None = None) -> Path:
    """Local folder of a bundle.

    Several processes may ask at the same time: one fetches, the others wait and use its copy. A
    download is renamed into place only after every file has the size and hash that the manifest
    says, so a broken one never looks like a bundle. A damaged copy in the cache is fetched again.

    Args:
        address: A folder, or any address that fsspec knows, without a trailing `manifest.json`.
        cache_dir: Where fetched bundles are kept.
        manifest_sha256: Expected hash of the manifest, which pins every other file.

    Raises:
        BundleError: There is no such bundle, it is damaged, or it is not the pinned one.
        BackendUnavailableError: A package for this kind of address is missing.
    """
    if "://" not in address:
        path = Path(address).expanduser()
        read_manifest(path, manifest_sha256)
        return path
    parts = urlsplit(address)
    # Without a password or a signed query: it goes into messages.
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    system, root = _open(address, shown)

    def read_content() -> bytes:
        with system.open(f"{root}/{MANIFEST}", "rb") as file:
            return bytes(file.read(_MANIFEST_LIMIT))

    content = _retried(read_content, f"{MANIFEST} of {shown}")
    digest = hashlib.sha256(content).hexdigest()
    if manifest_sha256 is not None and digest != manifest_sha256.lower():
        raise BundleError(
            f"{MANIFEST} at {shown} has sha256 {digest}, but {manifest_sha256} was pinned; "
            "this is another bundle, or it was changed"
        )
    manifest = Manifest.from_json(content)
    cache_dir = cache_dir.expanduser()
    target = cache_dir / digest
    with locked(cache_dir / f"{digest}.lock"):
        # Whoever left these was killed, or the lock would not be held here.
        for stale in cache_dir.glob(f".*{digest}*"):
            shutil.rmtree(stale)
        if not _is_whole(target, manifest):
            begun = time.monotonic()
            with staged_folder(target) as part:
                for name, entry in manifest.files.items():
                    copy = partial(_copy, system, root, name, entry, part)
                    _retried(copy, f"{name} of {shown}")
                (part / MANIFEST).write_bytes(content)
            seconds = round(time.monotonic() - begun, 3)
            LOG.info("bundle fetched", extra={"sha256": digest, "seconds": seconds})
    return target


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a bundle that was fetched before can be used."""
    if not folder.is_dir():
        return False
    try:
        read_manifest(folder, folder.name)
        for name, entry in manifest.files.items():
            check_file(folder, name, entry)
    except AmlrError as error:
        LOG.warning("cached bundle is fetched again", extra={"reason": str(error)})
        return False
    return True


def _open(address: str, shown: str) -> tuple[Any, str]:
    """File system and folder of an address."""
    try:
        from fsspec.core import url_to_fs

        system, root = url_to_fs(address)
    except ImportError as error:
        raise BackendUnavailableError(
            f"{shown} needs a package that is not installed ({error}); install it, and "
            'fsspec with: pip install "amlr[ray]"'
        ) from error
    except ValueError as error:
        raise BundleError(f"{shown} is no address that fsspec knows ({error})") from error
    return system, str(root).rstrip("/")


def _copy(system: Any, root: str, name: str, entry: FileEntry, folder: Path) -> None:
    """Bring one file and compare it with the manifest."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    with system.open(f"{root}/{name}", "rb") as source, (folder / name).open("wb") as target:
        shutil.copyfileobj(source, target, _PIECE)
    check_file(folder, name, entry)


def _retried(action: Callable[[], T], what: str) -> T:
    """Storage may stumble; what is not there or not allowed stays so."""
    for attempt in range(_TRIES):
        try:
            return action()
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise BundleError(
                f"cannot read {what} ({type(error).__name__}); check the address"
            ) from error
        # Every storage has errors of its own.
        except Exception as error:
            if attempt + 1 == _TRIES:
                reason = str(error) if isinstance(error, AmlrError) else type(error).__name__
                raise BundleError(
                    f"cannot fetch {what} ({reason}, {_TRIES} tries); upload the bundle again, "
                    "or check the storage"
                ) from error
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with its process, however that ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
