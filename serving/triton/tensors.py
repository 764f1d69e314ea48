"""BYTES tensors as Triton keeps them in files: length (4 bytes, little endian) and content."""

import struct
from collections.abc import Iterable


def encode_bytes(elements: Iterable[bytes]) -> bytes:
    """Elements one after another."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)
