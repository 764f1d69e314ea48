"""Weights that a seed decides, the same bytes on every machine and with every NumPy.

Only raw 64-bit words of the Philox generator are used: NumPy keeps those stable across versions,
while its distributions may change. Values are integers times a power of two, so a product of two
such matrices is exact in float64, whatever the order of its sums.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

# Values take up to 2 ** (_BITS + 1) different levels: 2 x 14 bits and 10 bits of sums fit float64.
_BITS = 13
_WORDS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SeededTensor:
    """A float32 tensor of uniform random values.

    Attributes:
        name: Decides the values, together with the seed.
        shape: Its shape.
        std: Standard deviation; 0 gives a constant.
        mean: Added to all values; 0 or 1, so that sums stay exact.
    """

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0

    def values(self, seed: int) -> npt.NDArray[np.float32]:
        """The tensor for a seed."""
        size = math.prod(self.shape)
        out = np.full(size, np.float32(self.mean), np.float32)
        # A uniform integer in [-half, half) has the standard deviation half / sqrt(3).
        reach = self.std * math.sqrt(3)
        exponent = _BITS - math.ceil(math.log2(reach)) if reach > 0 else 0
        half = round(math.ldexp(reach, exponent))
        if not half:
            return out.reshape(self.shape)
        step = np.float32(math.ldexp(1.0, -exponent))
        key = np.array([seed, zlib.crc32(self.name.encode())], np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        for start in range(0, size, 4 * _WORDS):
            part = out[start : start + 4 * _WORDS]
            # The same words as `bits.random_raw`, without the interpreter's lock.
            words = generator.integers(0, 2**64, -(-len(part) // 4), dtype=np.uint64)
            # Little-endian on every machine, so that the four values of a word keep their order.
            raw = words.astype("<u8").view("<u2")[: len(part)].astype(np.int32)
            part += ((raw * np.int32(2 * half) >> 16) - np.int32(half)).astype(np.float32) * step
        return out.reshape(self.shape)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name, "shape": list(self.shape), "std": self.std, "mean": self.mean
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_dict` values."""
        return cls(
            name=str(values["name"]),
            shape=tuple(int(size) for size in values["shape"]),
            std=float(values["std"]),
            mean=float(values["mean"]),
        )
