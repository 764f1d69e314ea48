"""Large weight files described so shortly that they can travel, and made again byte for byte.

A pool holds tensors by name: drawn from a seed, computed from those, or carried compressed (as
float16 where that is exact). A file is a list of pieces; each piece is one pool tensor, or several
side by side, perhaps transposed and rounded to the file's type. Hashes prove the result.

Needs NumPy only: files are made where nothing else may be installed.
"""

import hashlib
import json
import lzma
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.errors import BundleError
from amlr.training.seeded import SeededTensor

Array = npt.NDArray[Any]
RECIPE, CARRIED = "recipe.json", "carried.xz"
# Names of the attention's folded maps; see `amlr.export.fusion_graph`.
FOLDED = ("folded.into", "folded.out", "folded.mean_out")
_CROSS = tuple(f"cross.{name}.weight" for name in ("query", "key", "value", "output"))
# Tensors side by side that a merged matrix may consist of, beside square blocks.
_SPLITS = (2, 3, 4, 6, 8, 12)
# Between a matrix's name and the number of one of its square blocks, along its longer side.
_BLOCK = "@"
_LEAST_KNOWN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One tensor in a weights file.

    Attributes:
        offset: First byte.
        dtype: NumPy's name of the file's type.
        sources: Tensors of the pool, side by side.
        transposed: Whether each is transposed first.
        axis: Where they are joined.
    """

    offset: int
    dtype: str
    sources: tuple[str, ...]
    transposed: bool = False
    axis: int = 0

    def make(self, pool: "Pool") -> bytes:
        """The bytes."""
        parts = [pool[name] for name in self.sources]
        if self.transposed:
            parts = [part.reshape(len(part), -1).T for part in parts]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self.axis)
        return np.ascontiguousarray(joined, dtype=self.dtype).tobytes()


class Pool:
    """Tensors by name, each made when it is asked for."""

    def __init__(
        self,
        *,
        seed: int = 0,
        seeded: Sequence[SeededTensor] = (),
        heads: int = 0,
        carried: Mapping[str, Array] | None = None,
    ) -> None:
        """Collect.

        Args:
            seed: Of the seeded tensors.
            seeded: Tensors that a seed decides.
            heads: Heads of the cross-modal attention; 0 where its maps are not folded.
            carried: Tensors that were carried.
        """
        self.seed, self.heads = seed, heads
        self.seeded = {tensor.name: tensor for tensor in seeded}
        self.carried = dict(carried or {})
        self._folded = lru_cache(maxsize=1)(self._fold)

    def names(self) -> list[str]:
        """All names."""
        shapes = {name: tensor.shape for name, tensor in self.seeded.items()}
        shapes |= {name: value.shape for name, value in self.carried.items()}
        blocks = [
            f"{name}{_BLOCK}{number}"
            for name, shape in shapes.items()
            if len(shape) == 2 and max(shape) % min(shape) == 0 and min(shape) > 1
            for number in range(max(shape) // min(shape) if max(shape) > min(shape) else 0)
        ]
        return [*self.seeded, *(FOLDED if self.heads else ()), *self.carried, *blocks]

    def __getitem__(self, name: str) -> Array:
        if name in FOLDED:
            return self._folded()[name]
        name, _, number = name.partition(_BLOCK)
        is_carried = name in self.carried
        value = self.carried[name] if is_carried else self.seeded[name].values(self.seed)
        if not number:
            return value
        side = min(value.shape)
        place = slice(int(number) * side, (int(number) + 1) * side)
        return value[place] if len(value) > side else value[:, place]

    def _fold(self) -> dict[str, Array]:
        """As `FoldedCross`, in float64: exact, because seeded values have few bits."""
        query, key, value, output = (self[name].astype(np.float64) for name in _CROSS)
        heads, width = self.heads, query.shape[1]
        inner = query.shape[0] // heads
        by_head = [matrix.reshape(heads, inner, width) for matrix in (query, key, value)]
        by_output = output.reshape(width, heads, inner).transpose(1, 2, 0)
        into = by_head[0].transpose(0, 2, 1) @ by_head[1] / math.sqrt(inner)
        out = by_head[2].transpose(0, 2, 1) @ by_output
        return {
            FOLDED[0]: into.transpose(0, 2, 1).reshape(heads * width, width).astype(np.float32),
            FOLDED[1]: out.transpose(2, 0, 1).reshape(width, heads * width).astype(np.float32),
            FOLDED[2]: np.ascontiguousarray(out.sum(0).T.astype(np.float32)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTensor:
    """A tensor that a graph reads from a weights file."""

    name: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


def describe(content: bytes, tensors: Sequence[FileTensor], pool: Pool) -> list[Piece]:
    """Find every tensor of a weights file in the pool; what is not there is added to be carried.

    Args:
        content: The file.
        tensors: What graphs read from it; the rest of the file must be zeros.
        pool: Searched, and extended by what is carried.
    """
    halves = any(tensor.dtype == "float16" for tensor in tensors)
    known: dict[bytes, tuple[str, bool]] = {}
    for name in pool.names():
        value = pool[name]
        if not np.issubdtype(value.dtype, np.floating):
            continue
        for dtype in (np.float32, np.float16) if halves else (np.float32,):
            known.setdefault(_digest(value.astype(dtype)), (name, False))
            if value.ndim > 1:
                turned = value.reshape(len(value), -1).T.astype(dtype)
                known.setdefault(_digest(turned), (name, True))
    pieces = []
    # Wide types first: what is only rounded then needs no copy of its own.
    distinct = {tensor.offset: tensor for tensor in tensors}.values()
    for tensor in sorted(distinct, key=lambda each: -np.dtype(each.dtype).itemsize):
        size = math.prod(tensor.shape)
        value = np.frombuffer(content, tensor.dtype, size, tensor.offset).reshape(tensor.shape)
        pieces.append(_find(tensor, value, known, pool))
    return pieces


def _find(
    tensor: FileTensor, value: Array, known: dict[bytes, tuple[str, bool]], pool: Pool
) -> Piece:
    """A tensor as pool tensors; what is new is carried, of a merged matrix only the new parts."""
    best: tuple[float, int, list[Array], bool] = (0.0, 0, [value], False)
    for axis, parts in _splits(value):
        hits = [known[digest] for part in parts if (digest := _digest(part)) in known]
        turned = {is_turned for _, is_turned in hits}
        if len(turned) == 1 and len(hits) / len(parts) > best[0]:
            best = (len(hits) / len(parts), axis, parts, turned.pop())
    share, axis, parts, is_turned = best
    # Few known parts may be chance: constants and zeros look alike.
    if share < _LEAST_KNOWN:
        axis, parts, is_turned = 0, [value], False
    sources = []
    for part in parts:
        digest = _digest(part)
        if digest not in known:
            name = f"carried.{len(pool.carried)}"
            pool.carried[name] = np.ascontiguousarray(part.T if is_turned else part)
            known[digest] = (name, is_turned)
            if part.dtype == np.float32:
                known[_digest(part.astype(np.float16))] = (name, is_turned)
        sources.append(known[digest][0])
    return Piece(
        offset=tensor.offset, dtype=tensor.dtype, sources=tuple(sources), transposed=is_turned,
        axis=axis,
    )  # fmt: skip


def _splits(value: Array) -> Iterator[tuple[int, list[Array]]]:
    """The tensor as it is, then cut along one axis into equal parts."""
    yield 0, [value]
    if value.ndim != 2:
        return
    for axis in (0, 1):
        size, other = value.shape[axis], value.shape[1 - axis]
        for parts in sorted({*_SPLITS, size // other}):
            if 1 < parts < size and size % parts == 0:
                yield axis, np.split(value, parts, axis)


def _digest(value: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(value).data).digest() + str(value.dtype).encode()


def write_file(path: Path, size: int, pieces: Sequence[Piece], pool: Pool, sha256: str) -> None:
    """Make a weights file.

    Raises:
        BundleError: It is not the described one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
        handle = file.fileno()
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as workers:
            list(
                workers.map(lambda piece: os.pwrite(handle, piece.make(pool), piece.offset), pieces)
            )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise BundleError(
            f"{path.name} was made with sha256 {found[:16]}, expected {sha256[:16]}; this NumPy "
            "draws other values: fill the kit with this machine's version"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Weights files of one bundle.

    Attributes:
        pool: Where the pieces come from.
        files: By name in the bundle: size, sha256 and pieces.
        config: The model's settings, where the pool holds its whole `state_dict`.
    """

    pool: Pool
    files: dict[str, tuple[int, str, list[Piece]]]
    config: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        """Write `recipe.json` and `carried.xz`."""
        folder.mkdir(parents=True, exist_ok=True)
        packed = [_pack(name, value) for name, value in self.pool.carried.items()]
        content = {
            "seed": self.pool.seed,
            "seeded": [tensor.to_dict() for tensor in self.pool.seeded.values()],
            "heads": self.pool.heads,
            "carried": [entry for entry, _ in packed],
            "config": self.config,
            "files": {
                name: {
                    "bytes": size,
                    "sha256": sha256,
                    "pieces": [
                        [p.offset, p.dtype, list(p.sources), p.transposed, p.axis] for p in pieces
                    ],
                }
                for name, (size, sha256, pieces) in self.files.items()
            },
        }
        (folder / RECIPE).write_text(json.dumps(content), encoding="utf-8")
        data = lzma.compress(b"".join(planes for _, planes in packed), preset=6)
        (folder / CARRIED).write_bytes(data)

    @classmethod
    def load(cls, folder: Path) -> "Recipe":
        """Read what `save` wrote."""
        content = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        data = lzma.decompress((folder / CARRIED).read_bytes())
        carried, at = {}, 0
        for entry in content["carried"]:
            value, at = _unpack(entry, data, at)
            carried[entry["name"]] = value
        pool = Pool(
            seed=content["seed"],
            seeded=[SeededTensor.from_dict(entry) for entry in content["seeded"]],
            heads=content["heads"],
            carried=carried,
        )
        files = {
            name: (
                entry["bytes"],
                entry["sha256"],
                [
                    Piece(offset=offset, dtype=dtype, sources=tuple(sources), transposed=t, axis=a)
                    for offset, dtype, sources, t, a in entry["pieces"]
                ],
            )
            for name, entry in content["files"].items()
        }
        return cls(pool=pool, files=files, config=content["config"])

    def write(self, bundle: Path) -> None:
        """Make every file below a bundle's folder."""
        for name, (size, sha256, pieces) in self.files.items():
            write_file(bundle / name, size, pieces, self.pool, sha256)


def _pack(name: str, value: Array) -> tuple[dict[str, Any], bytes]:
    """How a tensor is stored, and its bytes: all first bytes, all second bytes, and so on."""
    stored = value
    if value.dtype == np.float32:
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if np.array_equal(half.astype(np.float32).view(np.uint32), value.view(np.uint32)):
            stored = half
    entry = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
    planes = np.ascontiguousarray(stored).view(np.uint8).reshape(-1, stored.dtype.itemsize).T
    return entry | {"stored": str(stored.dtype)}, planes.tobytes()


def _unpack(entry: Mapping[str, Any], data: bytes, at: int) -> tuple[Array, int]:
    stored = np.dtype(entry["stored"])
    count = math.prod(entry["shape"])
    end = at + count * stored.itemsize
    planes = np.frombuffer(data, np.uint8, end - at, at).reshape(stored.itemsize, count)
    value = np.ascontiguousarray(planes.T).view(stored).reshape(entry["shape"])
    return value.astype(entry["dtype"]), end
