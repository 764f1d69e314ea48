"""Read and verify a bundle folder: sizes and hashes first, parsing after, nothing unpickled."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amlr.errors import AmlrError, BundleError, InputError
from amlr.kernels.arrays import Floats
from amlr.runtime.known_files import FileStamp, file_stamp
from amlr.runtime.manifest import (
    DECODER,
    GOLDEN,
    MANIFEST,
    TOKENIZER,
    FileEntry,
    Manifest,
    Variant,
    parse_json_object,
)
from amlr.runtime.text import TextEncoder, load_tokenizer

_MANIFEST_LIMIT = 32_000_000
_MAGIC = {
    b"PK": "a zip or PyTorch file; make a bundle of a checkpoint with: amlr-export --ckpt FILE",
    b"\x80": "a pickle, which is never opened; make a bundle with: amlr-export --ckpt FILE",
    b"\x1f\x8b": "an archive; unpack it and give the folder",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecoderWeights:
    """The linear chain of the token head; Y tags.

    Attributes:
        start_y: Score of starting with a tag, -inf where that is not allowed, shape (Y,).
        transitions_yy: Score of tag i (row) followed by tag j (column).
        end_y: Score of ending with a tag.
        allowed_yy: Moves that the BIO scheme allows.
    """

    start_y: Floats
    transitions_yy: Floats
    end_y: Floats
    allowed_yy: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GoldenPost:
    """One input with what the eager model answered.

    Attributes:
        text: The post.
        words: Its words' spans, or None for the word rule.
        image: The picture's file content, or None.
        pixels_chw: The picture as the model saw it, or None.
        entities: As `Entity.to_dict`.
        arrays: `input_ids`, `unit_starts`, `unit_ends`, `unit_logits`, `emissions`.
    """

    text: str
    words: list[tuple[int, int]] | None
    image: bytes | None
    pixels_chw: Floats | None
    entities: list[dict[str, Any]]
    arrays: dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A verified bundle; graphs are verified when a variant is chosen."""

    path: Path
    manifest: Manifest
    manifest_sha256: str
    encoder: TextEncoder
    decoder: DecoderWeights
    golden: tuple[GoldenPost, ...]
    # Several tiers share their weights, so a file is read again only if its times changed.
    _verified: dict[str, FileStamp] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def open(cls, path: str | Path, manifest_sha256: str | None = None) -> Self:
        """Open a bundle folder.

        Args:
            path: The folder.
            manifest_sha256: Expected hash of `manifest.json`, which in turn pins every file.

        Raises:
            BundleError: Missing, truncated, damaged, of another schema, or not the pinned one.
        """
        manifest, digest = read_manifest(path, manifest_sha256)
        root = Path(path)
        golden: tuple[GoldenPost, ...] = ()
        # Only a bundle that is still being written has none.
        if GOLDEN in manifest.files:
            golden = _golden(_read_checked(root, manifest, GOLDEN))
        return cls(
            path=root,
            manifest=manifest,
            manifest_sha256=digest,
            encoder=_encoder(manifest, _read_checked(root, manifest, TOKENIZER)),
            decoder=_decoder(manifest, _read_checked(root, manifest, DECODER)),
            golden=golden,
        )

    def verified(self, name: str) -> Path:
        """Path of one file after comparing it with the manifest.

        Raises:
            BundleError: Not listed, missing, truncated or damaged.
        """
        path = self.path / name
        stamp = file_stamp(path)
        if stamp is None or self._verified.get(name) != stamp:
            check_file(self.path, name, _entry(self.manifest, name))
            if stamp is not None:
                self._verified[name] = stamp
        return path

    def verify(self, variant: Variant) -> None:
        """Check every file that a variant's graphs need, their external data included.

        Raises:
            BundleError: A file is missing, truncated or damaged.
        """
        for name in self.files_of(variant.graphs.values()):
            self.verified(name)

    def files_of(self, graphs: Any) -> list[str]:
        """Files in the folders of some graph files: weights lie beside their graphs."""
        folders = {PurePosixPath(name).parent for name in graphs}
        return [name for name in self.manifest.files if PurePosixPath(name).parent in folders]

    def graph_path(self, variant: Variant, graph: str) -> Path:
        """Path of one graph.

        Raises:
            BundleError: The variant has no such graph.
        """
        if graph not in variant.graphs:
            raise BundleError(
                f"the {variant.precision} variant has no graph {graph!r}, only "
                f"{sorted(variant.graphs)}; export the bundle again"
            )
        return self.path / variant.graphs[graph]

    def graph_hash(self, variant: Variant, graph: str) -> str:
        """Digest of a graph and the weights beside it: changes when its outputs could."""
        names = [
            name
            for name in self.files_of([variant.graphs[graph]])
            if not name.endswith(".onnx") or name == variant.graphs[graph]
        ]
        text = json.dumps(sorted(self.manifest.files[name].sha256 for name in names))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(path: str | Path, manifest_sha256: str | None = None) -> tuple[Manifest, str]:
    """Manifest of a bundle folder and its sha256; no other file is looked at.

    Raises:
        BundleError: Not a bundle, another schema, or not the manifest that was pinned.
    """
    root = Path(path)
    if not root.is_dir():
        raise BundleError(_not_a_folder(root))
    _refuse_link(root, MANIFEST)
    content = _read(root / MANIFEST, str(root / MANIFEST), _MANIFEST_LIMIT)
    digest = hashlib.sha256(content).hexdigest()
    if manifest_sha256 is not None and digest != manifest_sha256.lower():
        raise BundleError(
            f"{MANIFEST} has sha256 {digest}, but {manifest_sha256} was pinned; "
            "this is another bundle, or it was changed"
        )
    manifest = Manifest.from_json(content)
    for name in manifest.files:
        _refuse_link(root, name)
    return manifest, digest


def _refuse_link(root: Path, name: str) -> None:
    """Bundles of links (hub caches, DVC) are refused everywhere alike.

    onnxruntime takes no weights that lie elsewhere, other libraries do: a bundle would pass the
    inspection and then be served by some tiers only. The bundle's own folder may be a link.
    """
    try:
        is_link = (root / name).resolve() != root.resolve() / name
    except (OSError, RuntimeError):
        is_link = True
    if is_link:
        raise BundleError(
            f"{name} of the bundle is a link, and engine libraries do not follow links out of a "
            f"bundle; copy it with its files: cp -rL {root} COPY"
        )


def check_file(root: Path, name: str, entry: FileEntry) -> None:
    """Compare one file with the manifest, in pieces.

    Raises:
        BundleError: Missing, truncated or damaged.
    """
    try:
        size = (root / name).stat().st_size
        if size == entry.bytes:
            with (root / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == entry.sha256:
                    return
    except OSError as error:
        raise BundleError(_missing(name, error)) from error
    raise BundleError(_damaged(name, size, entry))


def _entry(manifest: Manifest, name: str) -> FileEntry:
    if name not in manifest.files:
        raise BundleError(f"{MANIFEST} lists no {name}; export the bundle again")
    return manifest.files[name]


def _read_checked(root: Path, manifest: Manifest, name: str) -> bytes:
    entry = _entry(manifest, name)
    content = _read(root / name, name, entry.bytes)
    if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise BundleError(_damaged(name, len(content), entry))
    return content


def _read(path: Path, name: str, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BundleError(_missing(name, error)) from error


def _missing(name: str, error: OSError) -> str:
    return f"cannot read {name} of the bundle ({error.strerror}); copy or export the bundle again"


def _damaged(name: str, size: int, entry: FileEntry) -> str:
    kind = "damaged" if size == entry.bytes else f"{size} bytes long instead of {entry.bytes}"
    return f"{name} is {kind}; copy or export the bundle again"


def _not_a_folder(path: Path) -> str:
    if not path.exists():
        return f"no bundle at {path}; check the path, or make one with amlr-export"
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        start = b""
    for magic, what in _MAGIC.items():
        if start.startswith(magic):
            return f"{path} is {what}"
    return f"{path} is a file; a bundle is a folder that holds {MANIFEST}"


def _encoder(manifest: Manifest, content: bytes) -> TextEncoder:
    ids = manifest.token_ids
    try:
        tokenizer = load_tokenizer(content.decode())
    except (InputError, UnicodeDecodeError) as error:
        raise BundleError(f"{TOKENIZER} cannot be read: {error}") from error
    return TextEncoder(
        tokenizer,
        manifest.text,
        cls_id=ids.cls_id,
        sep_id=ids.sep_id,
        pad_id=ids.pad_id,
        unk_id=ids.unk_id,
    )


def _tensors(name: str, content: bytes) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: dict[str, npt.NDArray[Any]] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{name} is no safetensors file: {error}") from error
    return tensors


def _decoder(manifest: Manifest, content: bytes) -> DecoderWeights:
    tensors = _tensors(DECODER, content)
    tags = len(manifest.tags)
    shapes = {
        "start": (tags,),
        "end": (tags,),
        "transitions": (tags, tags),
        "allowed": (tags, tags),
        "allowed_start": (tags,),
    }
    for name, shape in shapes.items():
        if name not in tensors or tensors[name].shape != shape:
            found = tensors[name].shape if name in tensors else "nothing"
            raise BundleError(f"{DECODER} must hold {name!r} of shape {shape}, found {found}")
    can_start = tensors["allowed_start"] != 0
    return DecoderWeights(
        start_y=np.where(can_start, tensors["start"], -np.inf).astype(np.float32),
        transitions_yy=tensors["transitions"].astype(np.float32),
        end_y=tensors["end"].astype(np.float32),
        allowed_yy=tensors["allowed"] != 0,
    )


def _golden(content: bytes) -> tuple[GoldenPost, ...]:
    tensors = _tensors(GOLDEN, content)
    header = parse_json_object(content[8 : 8 + int.from_bytes(content[:8], "little")], GOLDEN)
    try:
        posts = json.loads(header["__metadata__"]["posts"])
        return tuple(_golden_post(number, post, tensors) for number, post in enumerate(posts))
    except (KeyError, TypeError, ValueError, AmlrError) as error:
        raise BundleError(f"{GOLDEN} is incomplete ({error}); export the bundle again") from error


def _golden_post(
    number: int, post: dict[str, Any], tensors: dict[str, npt.NDArray[Any]]
) -> GoldenPost:
    image = post["image"]
    names = ("input_ids", "unit_starts", "unit_ends", "unit_logits", "emissions")
    return GoldenPost(
        text=post["text"],
        words=None if post["words"] is None else [(int(s), int(e)) for s, e in post["words"]],
        image=None if image is None else tensors[f"image.{image}"].tobytes(),
        pixels_chw=None if image is None else tensors[f"pixels.{image}"],
        entities=post["entities"],
        arrays={name: tensors[f"{number}.{name}"] for name in names},
    )
