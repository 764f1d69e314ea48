"""Make onnxruntime-gpu's wheel small enough to carry: `python -m amlr.benchmarks.gpu.slim -h`.

255 MB become about 40. The CUDA library's `.nv_fatbin` section is a run of fat binaries: a 16-byte
header (magic, version u16, header size u16, payload size u64), then entries (kind u16: 2 = ELF;
version u16; header size u32; payload size u64; ...; architecture u32 at offset 28). Payloads of
other architectures, and of kernels that only language models use, are overwritten with zeros:
headers, sizes and offsets stay, modules load lazily, and zeros compress to nothing. A kernel that
was blanked fails at launch with "no kernel image": then use --keep-all-kernels.
"""

import argparse
import base64
import hashlib
import re
import struct
import zipfile
from pathlib import Path

from amlr.errors import ExportError, InputError

_MAGIC, _ELF, _ZSTD = 0xBA55ED50, 2, b"\x28\xb5\x2f\xfd"
_SECTION = b".nv_fatbin"
# Mixture of experts, grouped products, paged attention.
_LANGUAGE_MODELS = re.compile(
    rb"moe|MoE|GroupProblemShape|fpA_intB|paged|XqaImpl|grp\d+_", re.ASCII
)
_CUDA_LIBRARY = "libonnxruntime_providers_cuda.so"
_LEFT_OUT = (
    "libonnxruntime_providers_tensorrt.so",
    "libonnxruntime.so.",
    "/transformers/models/",
    "ThirdPartyNotices.txt",
)


def slim_wheel(wheel: Path, folder: Path, *, sm: int = 90, keep_all: bool = False) -> Path:
    """Rewrite one wheel under its own name; its RECORD is made anew.

    Args:
        wheel: onnxruntime-gpu's.
        folder: Takes the small one.
        sm: Architecture to keep, 90 for an H100.
        keep_all: Keep kernels of language models too.

    Raises:
        ExportError: The wheel's library is not built as expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.name
    rows: list[str] = []
    with (
        zipfile.ZipFile(wheel) as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as made,
    ):
        record = next(n for n in source.namelist() if n.endswith(".dist-info/RECORD"))
        for info in source.infolist():
            if info.filename == record or any(part in info.filename for part in _LEFT_OUT):
                continue
            data = bytearray(source.read(info))
            if info.filename.endswith(_CUDA_LIBRARY):
                blank(data, sm, keep_all=keep_all)
            made.writestr(info, bytes(data), zipfile.ZIP_LZMA)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{info.filename},sha256={digest},{len(data)}")
        made.writestr(record, "\n".join([*rows, f"{record},,", ""]))
    return target


def blank(library: bytearray, sm: int, *, keep_all: bool = False) -> tuple[int, int]:
    """Zero what is not needed, in place; bytes of machine code kept and blanked."""
    start, size = _section(library)
    at, end, kept, blanked = start, start + size, 0, 0
    while at < end - 16:
        magic, _, header, payload = struct.unpack_from("<IHHQ", library, at)
        if magic != _MAGIC:
            at += 8
            continue
        entry, stop = at + header, at + header + payload
        while entry < stop:
            kind, _, head, length = struct.unpack_from("<HHIQ", library, entry)
            (architecture,) = struct.unpack_from("<I", library, entry + 28)
            body = slice(entry + head, entry + head + length)
            is_ours = kind == _ELF and architecture == sm
            if is_ours and (keep_all or not _is_for_language_models(bytes(library[body]))):
                kept += length
            else:
                library[body] = bytes(length)
                blanked += length
            entry += head + length
        at = (stop + 7) // 8 * 8
    if not kept:
        raise ExportError(f"the library holds no machine code for sm_{sm}; choose another --sm")
    return kept, blanked


def _section(library: bytearray) -> tuple[int, int]:
    """Offset and size of the section with the machine code."""
    (table,) = struct.unpack_from("<Q", library, 40)
    size, count, names = struct.unpack_from("<HHH", library, 58)
    heads = [struct.unpack_from("<IIQQQQ", library, table + size * i) for i in range(count)]
    strings = heads[names][4]
    for head in heads:
        start = strings + head[0]
        if bytes(library[start : library.index(b"\0", start)]) == _SECTION:
            return head[4], head[5]
    raise ExportError(f"the library has no section {_SECTION.decode()}; is it a CUDA build?")


def _is_for_language_models(payload: bytes) -> bool:
    try:
        import zstandard
    except ImportError as error:
        raise InputError(
            "zstandard is not installed; pip install zstandard, or use --keep-all-kernels"
        ) from error
    at = payload.find(_ZSTD)
    image = payload
    if at >= 0:
        image = zstandard.ZstdDecompressor().decompressobj().decompress(payload[at:])
    return _LANGUAGE_MODELS.search(image) is not None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sm", type=int, default=90)
    parser.add_argument("--keep-all-kernels", action="store_true")
    args = parser.parse_args()
    try:
        target = slim_wheel(args.wheel, args.folder, sm=args.sm, keep_all=args.keep_all_kernels)
    except (ExportError, InputError) as error:
        raise SystemExit(str(error)) from error
    print(f"{target} {target.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
