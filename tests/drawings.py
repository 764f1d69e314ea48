"""Pictures made from formulas, the same everywhere, in every form a picture can take."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image


def smooth(width: int = 96, height: int = 64) -> Image.Image:
    """Colour gradients without sharp edges, so that codecs agree on them."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    red = 127 + 120 * np.sin(x / 17)
    green = 127 + 120 * np.cos(y / 13)
    blue = 255 * (x + y) / max(1, width + height - 2)
    return Image.fromarray(np.rint(np.stack([red, green, blue], -1)).astype(np.uint8))


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """File content of an image."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation: int, form: str = "JPEG") -> bytes:
    """The smooth picture stored so that this EXIF orientation shows it upright."""
    back = {
        1: None,
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }[orientation]
    image = smooth()
    if back:
        image = image.transpose(Image.Transpose[back])
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, form, exif=exif, **({"quality": 95} if form == "JPEG" else {}))


def half_transparent() -> Image.Image:
    """The smooth picture, fading out to the right."""
    image = smooth().convert("RGBA")
    alpha = np.broadcast_to(np.linspace(255, 0, image.width).astype(np.uint8), image.size[::-1])
    image.putalpha(Image.fromarray(np.ascontiguousarray(alpha)))
    return image


def sixteen_bit() -> Image.Image:
    """A 16-bit grey gradient."""
    values = np.linspace(0, 65535, 96 * 64).reshape(64, 96)
    return Image.fromarray(values.astype(np.uint16))


def animated(form: str) -> bytes:
    """Two frames, the smooth one first."""
    other = Image.new("RGB", (96, 64), (255, 0, 0))
    return saved(smooth(), form, save_all=True, append_images=[other], duration=50)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds almost nothing: a decompression bomb's first bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GOLDEN_CASES: dict[str, Callable[[], bytes]] = {
    "png": lambda: saved(smooth()),
    "jpeg": lambda: saved(smooth(), "JPEG", quality=95),
    "jpeg-large": lambda: saved(smooth(960, 640), "JPEG", quality=95),
    "jpeg-grey": lambda: saved(smooth().convert("L"), "JPEG", quality=95),
    "jpeg-cmyk": lambda: saved(smooth().convert("CMYK"), "JPEG", quality=95),
    "jpeg-turned": lambda: turned(6),
    "png-alpha": lambda: saved(half_transparent()),
    "png-grey-alpha": lambda: saved(half_transparent().convert("LA")),
    "png-palette": lambda: saved(smooth().quantize(16, dither=Image.Dither.NONE)),
    "png-16-bit": lambda: saved(sixteen_bit()),
    "png-1-bit": lambda: saved(smooth().convert("L").point(lambda v: 255 * (v > 127), "1")),
    "webp": lambda: saved(smooth(), "WEBP", lossless=True),
    "gif-animated": lambda: animated("GIF"),
    "bmp": lambda: saved(smooth(), "BMP"),
    "tiff": lambda: saved(smooth(), "TIFF"),
    "1x1": lambda: saved(Image.new("RGB", (1, 1), (10, 200, 90))),
    "thin": lambda: saved(smooth(400, 3)),
}
