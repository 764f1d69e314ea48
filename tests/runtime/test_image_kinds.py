"""What a viewer shows is what the model sees: orientation, transparency, depth, file formats."""

import io
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from amlr.errors import InputError
from amlr.runtime.image import ImageLimits, ImageSpec, content_key, load_pixels
from drawings import png_header, saved, smooth, turned

SPEC = ImageSpec(size=6, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
FORMATS = [name for name in ImageLimits().formats if name != "HEIF"]
WITH_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", WITH_EXIF)
def test_orientation_is_that_of_exif_transpose(form: str, orientation: int) -> None:
    content = turned(orientation, form)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    expected = load_pixels(shown, SPEC)
    # JPEG is decoded at a smaller scale, other turned pictures are resized along the other side.
    tolerance = (4 if form == "JPEG" else 1) / 255 + 1e-6
    for source in (content, Image.open(io.BytesIO(content))):
        np.testing.assert_allclose(load_pixels(source, SPEC), expected, atol=tolerance)
    np.testing.assert_allclose(expected, load_pixels(smooth(), SPEC), atol=8 / 255)


@pytest.mark.parametrize("orientation", [2, 6])
def test_a_tiff_object_is_turned_once_before_and_after_loading(orientation: int) -> None:
    image = Image.open(io.BytesIO(turned(orientation, "TIFF")))
    lazy_key, pixels = content_key(image), load_pixels(image, SPEC)
    assert content_key(image) == lazy_key
    np.testing.assert_array_equal(load_pixels(image, SPEC), pixels)
    np.testing.assert_array_equal(pixels, load_pixels(smooth(), SPEC))


@pytest.mark.parametrize("form", FORMATS)
def test_every_accepted_format_is_read(form: str) -> None:
    pixels = load_pixels(saved(smooth(), form), SPEC)
    np.testing.assert_allclose(pixels, load_pixels(smooth(), SPEC), atol=0.2)


def _container(*brands: bytes) -> bytes:
    box = b"ftyp" + brands[0] + b"\0\0\0\0" + b"".join(brands[1:])
    return struct.pack(">I", 4 + len(box)) + box + b"\0" * 40


@pytest.mark.parametrize(
    ("brands", "formats", "part"),
    [
        ((b"heic", b"mif1"), None, "HEIF picture, which cannot be read here.*pillow-heif"),
        ((b"mif1", b"heic"), None, "HEIF picture, which cannot"),
        ((b"mif1", b"avif"), ("PNG", "JPEG"), "AVIF picture, but this bundle accepts PNG, JPEG"),
        ((b"avif",), None, "AVIF picture, which cannot be read here.*Pillow 11.3"),
        ((b"heic",), ("JPEG",), "HEIF picture, but this bundle accepts JPEG; save it as"),
        ((b"qt  ",), None, "not a picture this bundle accepts"),
    ],
)
def test_modern_formats_are_named(
    brands: tuple[bytes, ...], formats: tuple[str, ...] | None, part: str
) -> None:
    limits = ImageLimits() if formats is None else ImageLimits(formats=formats)
    with pytest.raises(InputError, match=part) as caught:
        load_pixels(_container(*brands), SPEC, limits)
    assert caught.value.code == "image_unreadable"


def test_a_plugin_the_user_registers_reads_its_format(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import BmpImagePlugin

    heic = _container(b"heic")

    def opened(file: Any, name: Any = None) -> Any:
        return BmpImagePlugin.BmpImageFile(io.BytesIO(saved(smooth(), "BMP")))

    def accepts(prefix: bytes) -> bool:
        return prefix[4:12] == b"ftypheic"

    monkeypatch.setitem(Image.OPEN, "HEIF", (opened, accepts))
    np.testing.assert_array_equal(load_pixels(heic, SPEC), load_pixels(smooth(), SPEC))


def test_size_is_refused_before_anything_is_decoded() -> None:
    # Nearly no data follows the header: decoding would fail with another code.
    content = png_header(8000, 7000)
    for refuse in (content_key, load_pixels):
        with pytest.raises(InputError, match="8000x7000") as caught:
            refuse(Image.open(io.BytesIO(content)))
        assert caught.value.code == "image_too_large"
    with pytest.raises(InputError, match="at most 100 are"):
        content_key(smooth(), ImageLimits(max_pixels=100))


def _flat(mode: str, alpha: int) -> Image.Image:
    """One colour with this opacity, in a mode that can hold it."""
    image = Image.new("RGBA", (9, 7), (180, 60, 20, alpha))
    if mode == "P-palette":
        return image.quantize(8)
    if mode == "P-info":
        plain = image.convert("RGB").quantize(8)
        plain.info["transparency"] = bytes([alpha] * 8)
        return plain
    if mode == "PA":
        pair = image.convert("RGB").quantize(8).convert("PA")
        pair.putalpha(alpha)
        return pair
    if mode in ("LA", "La"):
        grey = image.convert("LA")
        return grey.convert("La") if mode == "La" else grey
    return image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P-palette", "P-info"])
def test_transparency_lies_over_white_in_every_mode(mode: str) -> None:
    clear, half, solid = (_flat(mode, alpha) for alpha in (0, 128, 255))
    np.testing.assert_array_equal(load_pixels(clear, SPEC), 1)
    full = load_pixels(solid, SPEC)
    assert (full[0] < 0.9).all()
    np.testing.assert_allclose(load_pixels(half, SPEC), (1 + full) / 2, atol=3 / 255)
    assert len({content_key(image) for image in (clear, half, solid)}) == 3


def test_the_key_is_that_of_what_is_shown() -> None:
    grey = smooth().convert("L")
    assert content_key(grey) == content_key(grey.convert("RGB"))
    opaque = smooth().convert("RGBA")
    assert content_key(opaque) == content_key(smooth())
    for alpha in (0, 255):
        clear = _flat("RGBA", alpha)
        assert content_key(clear) == content_key(_flat("P-palette", alpha)), alpha
    sideways = smooth(64, 64)
    sideways.getexif()[0x0112] = 6
    assert content_key(sideways) != content_key(smooth(64, 64))


@pytest.mark.parametrize(("full", "form"), [(1.0, "TIFF"), (255.0, "TIFF"), (65535.0, "TIFF")])
def test_float_pictures_are_scaled_from_their_range(full: float, form: str) -> None:
    values = np.linspace(0, 1, 36, dtype=np.float32).reshape(6, 6)
    content = saved(Image.fromarray(values * np.float32(full)), form)
    np.testing.assert_allclose(load_pixels(content, SPEC)[0], values, atol=1 / 255)
    # A filter's overshoot, not numbers and not finite ones do not change the range.
    odd = values.copy()
    odd[0, :4] = (-0.1, 1.08, np.nan, np.inf)
    expected = values.copy()
    expected[0, :4] = (0, 1, 0, 1)
    pixels = load_pixels(Image.fromarray(odd * np.float32(full)), SPEC)
    np.testing.assert_allclose(pixels[2], expected, atol=1 / 255)


def test_a_transparent_value_of_a_16_bit_picture_is_white(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + struct.pack(">2H", 1000, 60_000) for _ in range(2))
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 0, 0, 0, 0)),
            chunk(b"tRNS", struct.pack(">H", 1000)),
            chunk(b"IDAT", zlib.compress(rows)),
            chunk(b"IEND", b""),
        ]
    )
    pixels = load_pixels(content, ImageSpec(size=2, mean=(0, 0, 0), std=(1, 1, 1)))
    np.testing.assert_allclose(pixels[:, 0], [[1, 60_000 / 65_535]] * 3, atol=1 / 255)


def test_versions_of_the_steps_are_recorded_and_explained() -> None:
    spec = ImageSpec()
    assert spec.version == 2
    assert spec.steps_note() is None
    values = asdict(spec)
    assert values.pop("version") == 2
    old = ImageSpec.from_dict(values)
    assert old.version == 1
    # The pixels are the same, whatever is recorded: the current steps apply to all.
    assert old.preprocessing_hash() == spec.preprocessing_hash()
    assert "upright" in (old.steps_note() or "")
    newer = ImageSpec.from_dict({**values, "version": 3})
    assert "install a newer amlr" in (newer.steps_note() or "")
    for note in (old.steps_note(), newer.steps_note()):
        assert note is not None
        assert "\n" not in note
    for wrong in (0, True, "2", 1.5):
        with pytest.raises(InputError, match="version of the picture steps"):
            ImageSpec.from_dict({**values, "version": wrong})
