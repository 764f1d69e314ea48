"""What a cubin says of its kernels' resources, read from the ELF file: no CUDA tool needed.

`.nv.info` holds attributes of all functions; `.nv.shared.<kernel>` is static shared memory. A
kernel that spills registers has a stack frame, so a frame of 0 bytes means 0 spills.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from amlr.errors import ExportError

_CUDA_MACHINE = 190
# Attributes whose value is (symbol, number).
_FRAME_SIZE = 0x11
_MIN_STACK_SIZE = 0x12
_REGISTER_COUNT = 0x2F
_FORMAT_SIZED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelResources:
    """Resources of one kernel in one cubin.

    Attributes:
        kernel: Its name.
        registers: Per thread.
        frame_bytes: Stack frame of the kernel; spilled registers live there.
        stack_bytes: Stack that it needs with everything it calls.
        shared_bytes: Static shared memory per block.
    """

    kernel: str
    registers: int
    frame_bytes: int
    stack_bytes: int
    shared_bytes: int


def read_resources(image: bytes) -> list[KernelResources]:
    """Resources of every kernel of a cubin.

    Raises:
        ExportError: Not a cubin, or one without the attributes that are needed.
    """
    if image[:4] != b"\x7fELF" or struct.unpack_from("<H", image, 18)[0] != _CUDA_MACHINE:
        raise ExportError("not a cubin (an ELF file for CUDA); compile for a real sm_NN")
    sections = _sections(image)
    names = _symbol_names(sections)
    found: dict[int, dict[int, int]] = {}
    for attribute, symbol, value in _attributes(sections[".nv.info"]):
        found.setdefault(symbol, {})[attribute] = value
    resources = []
    for symbol, attributes in found.items():
        name = names[symbol]
        if f".text.{name}" not in sections:
            continue
        missing = {_FRAME_SIZE, _MIN_STACK_SIZE, _REGISTER_COUNT} - set(attributes)
        if missing:
            raise ExportError(
                f"the cubin does not state attributes {sorted(missing)} of {name}; this NVRTC "
                "writes another format: compile with 12.x or 13.x, or check with ptxas -v"
            )
        resources.append(
            KernelResources(
                kernel=name,
                registers=attributes[_REGISTER_COUNT],
                frame_bytes=attributes[_FRAME_SIZE],
                stack_bytes=attributes[_MIN_STACK_SIZE],
                shared_bytes=len(sections.get(f".nv.shared.{name}", b"")),
            )
        )
    return resources


def _sections(image: bytes) -> dict[str, bytes]:
    (table,) = struct.unpack_from("<Q", image, 40)
    size, count, names_at = struct.unpack_from("<HHH", image, 58)
    headers = [struct.unpack_from("<IIQQQQ", image, table + size * i) for i in range(count)]
    names = image[headers[names_at][4] :][: headers[names_at][5]]
    # Type 8 occupies no space in the file; only its length matters here.
    return {
        _text(names, name): bytes(length) if kind == 8 else image[offset : offset + length]
        for name, kind, _, _, offset, length in headers
    }


def _symbol_names(sections: dict[str, bytes]) -> list[str]:
    table, names = sections[".symtab"], sections[".strtab"]
    return [_text(names, name) for (name,) in struct.iter_unpack("<I20x", table)]


def _text(names: bytes, offset: int) -> str:
    return names[offset : names.index(b"\0", offset)].decode()


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    at = 0
    while at + 4 <= len(info):
        kind, attribute, size = struct.unpack_from("<BBH", info, at)
        at += 4
        if kind == _FORMAT_SIZED:
            if size == 8:
                yield attribute, *struct.unpack_from("<II", info, at)
            at += size
