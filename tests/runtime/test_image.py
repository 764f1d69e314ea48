import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from amlr.errors import InputError
from amlr.runtime.image import ImageLimits, ImageSpec, content_key, load_pixels, read_source
from drawings import (
    GOLDEN_CASES,
    animated,
    half_transparent,
    png_header,
    saved,
    sixteen_bit,
    smooth,
    turned,
)

GOLDEN = Path(__file__).with_name("golden_pixels.json")
PLAIN: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SPECS = {
    "squash": ImageSpec(size=6, **PLAIN),
    "crop": ImageSpec(size=6, resize="crop", **PLAIN),
    "bicubic": ImageSpec(size=6, resample="bicubic", **PLAIN),
}
CONTENT = {name: make() for name, make in GOLDEN_CASES.items()}


@pytest.mark.parametrize("case", GOLDEN_CASES)
@pytest.mark.parametrize("spec", SPECS)
def test_golden_pixels(case: str, spec: str) -> None:
    expected = np.array(json.loads(GOLDEN.read_text())[f"{case} {spec}"]) / 255
    pixels = load_pixels(CONTENT[case], SPECS[spec])
    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 6, 6)
    # Decoders and Pillow builds may differ by this much, not more.
    np.testing.assert_allclose(pixels.reshape(3, 36), expected, atol=2 / 255)


def test_normalisation() -> None:
    spec = ImageSpec(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    pixels = load_pixels(Image.new("RGB", (9, 5), (255, 0, 51)), spec)
    np.testing.assert_allclose(pixels[:, 0, 0], [1.0, -1.0, 0.1], atol=1e-6)
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("spec", ["squash", "crop"])
def test_exif_orientation_is_applied(orientation: int, spec: str) -> None:
    upright = load_pixels(smooth(), SPECS[spec])
    pixels = load_pixels(turned(orientation), SPECS[spec])
    np.testing.assert_allclose(pixels, upright, atol=4 / 255)


def test_all_forms_of_a_source_agree(tmp_path: Path) -> None:
    content = saved(smooth())
    path = tmp_path / "x.jpg"  # a wrong ending: content decides
    path.write_bytes(content)
    expected = load_pixels(content)
    for source in (path, str(path), bytearray(content), memoryview(content), smooth()):
        np.testing.assert_array_equal(load_pixels(source), expected)


def test_transparency_is_white_and_first_frame_counts() -> None:
    pixels = load_pixels(saved(half_transparent()), SPECS["squash"])
    assert (pixels[:, :, -1] > 0.85).all()
    for form in ("GIF", "WEBP", "PNG", "TIFF"):
        first = load_pixels(animated(form), SPECS["squash"])
        np.testing.assert_allclose(
            first, load_pixels(smooth(), SPECS["squash"]), atol=0.15
        )  # GIF has few colours


def test_deep_modes() -> None:
    grey = load_pixels(sixteen_bit(), SPECS["squash"])
    assert grey[0, 0, 0] < 0.1 < 0.9 < grey[0, -1, -1]
    integers = Image.fromarray(np.full((5, 5), 200, np.int32))
    np.testing.assert_allclose(load_pixels(integers, SPECS["squash"]), 200 / 255, atol=1e-6)
    floats = Image.fromarray(np.full((5, 5), np.nan, np.float32))
    np.testing.assert_array_equal(load_pixels(floats, SPECS["squash"]), 0)


def test_a_users_image_is_left_as_it_was() -> None:
    image = half_transparent()
    before = image.tobytes()
    load_pixels(image)
    assert image.mode == "RGBA"
    assert image.tobytes() == before


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "image_unreadable"),
        (b"not a picture", "image_unreadable"),
        (b"%PDF-1.4 ...", "image_unreadable"),
        (saved(smooth())[:200], "image_unreadable"),
        (saved(smooth(), "JPEG")[:400], "image_unreadable"),
        (saved(smooth(), "WEBP")[:60], "image_unreadable"),
        (saved(smooth(), "GIF")[:500], "image_unreadable"),
        (saved(smooth(), "TIFF")[:300], "image_unreadable"),
        (saved(smooth(), "PPM"), "image_unreadable"),
        (png_header(8000, 7000), "image_too_large"),
        (png_header(60_000, 60_000), "image_too_large"),
        (png_header(100, 100), "image_unreadable"),
        (b"\0" * 20_000_001, "image_too_large"),
    ],
)
def test_bad_content_is_named(content: bytes, code: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pixels(content)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_bad_paths_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big").write_bytes(b"\0" * 2000)
    cases: dict[str | Path, str] = {
        tmp_path / "absent.jpg": "image_missing",
        tmp_path: "image_unreadable",
        tmp_path / "pipe": "image_unreadable",
        tmp_path / "big" / "below": "image_unreadable",
        "a\0b": "image_unreadable",
        tmp_path / "big": "image_too_large",
    }
    for path, code in cases.items():
        with pytest.raises(InputError) as caught:
            load_pixels(path, limits=ImageLimits(max_bytes=1000))
        assert caught.value.code == code, path


def test_other_bad_sources() -> None:
    closed = smooth()
    closed.close()
    cases: list[tuple[Any, str]] = [
        (3, "image_invalid"),
        ([1], "image_invalid"),
        (closed, "image_unreadable"),
    ]
    for source, code in cases:
        with pytest.raises(InputError) as caught:
            load_pixels(source)
        assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        load_pixels(smooth(), limits=ImageLimits(max_pixels=100))
    assert caught.value.code == "image_too_large"


@given(st.sampled_from(sorted(GOLDEN_CASES)), st.data())
def test_broken_bytes_never_do_more_than_raise(case: str, data: st.DataObject) -> None:
    content = bytearray(CONTENT[case])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        pixels = load_pixels(bytes(content), SPECS["squash"], ImageLimits(max_pixels=10_000_000))
    except InputError:
        return
    assert np.isfinite(pixels).all()


def test_content_keys() -> None:
    limits = ImageLimits()
    content = saved(smooth())
    assert content_key(read_source(bytearray(content), limits)) == content_key(content)
    assert content_key(smooth()) == content_key(smooth())
    palette = smooth().quantize(4)
    other = palette.copy()
    other.putpalette([255, 0, 0] * 4)
    different: list[Any] = [
        smooth(),
        smooth(64, 96),
        smooth().convert("L"),
        palette,
        other,
        content,
    ]
    assert len({content_key(source) for source in different}) == len(different)


def test_spec_hash_and_checks() -> None:
    assert ImageSpec().preprocessing_hash() == ImageSpec().preprocessing_hash()
    hashes = {spec.preprocessing_hash() for spec in SPECS.values()}
    assert len(hashes) == len(SPECS)
    spec = SPECS["crop"]
    assert ImageSpec.from_dict(json.loads(json.dumps(asdict(spec)))) == spec
    for wrong in ({"size": 0}, {"resize": "x"}, {"resample": "x"}, {"std": (0.0, 1.0, 1.0)}):
        with pytest.raises(InputError):
            ImageSpec(**wrong)
