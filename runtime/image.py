"""Picture to tensor: limits, orientation, one resize, normalisation. Shared with training.

The steps are fixed, because a model is only right on pixels prepared as in its training: open by
content, first frame, JPEG decoded at the smallest DCT scale that still covers the target, over
white where transparent, one resize straight to the target (a centre crop is a source box of that
same resize), EXIF orientation applied to the small picture, float32 (x / 255 - mean) / std.

Version 2 of these steps differs from version 1 in what `steps_note` says.
"""

import hashlib
import io
import json
import stat
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Union

import numpy as np

from amlr.errors import InputError
from amlr.kernels.arrays import Floats
from amlr.runtime.image_modes import to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

# A Union, because a name that is not imported at run time cannot stand beside a `|`.
ImageSource: TypeAlias = Union[str, Path, bytes, bytearray, memoryview, "Image"]
# Raised whenever the steps above change: part of every cache key and of the manifest.
STEPS_VERSION = 2
_CROP_SHARE = 224 / 256
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """Preprocessing of pictures; part of the bundle's manifest.

    Attributes:
        size: Height and width of the tensor.
        resize: `squash` (both sides to `size`) or `crop` (the centre square of 224/256 of the
            shorter side, as ImageNet evaluation does).
        resample: `bilinear` or `bicubic`, antialiased.
        mean: Per-channel mean in 0..1, RGB.
        std: Per-channel standard deviation, RGB.
        version: Version of the picture steps that the model was trained or exported with. It
            selects nothing: pictures are always prepared by the current version.
    """

    size: int = 224
    resize: str = "squash"
    resample: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    version: int = STEPS_VERSION

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise InputError(f"image size must lie in 1..4096, got {self.size}")
        if self.resize not in ("squash", "crop"):
            raise InputError(f"resize must be 'squash' or 'crop', got {self.resize!r}")
        if self.resample not in ("bilinear", "bicubic"):
            raise InputError(f"resample must be 'bilinear' or 'bicubic', got {self.resample!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError("mean and std need three values each, std above 0")
        if type(self.version) is not int or self.version < 1:
            raise InputError(
                f"version of the picture steps must be 1 or more, got {self.version!r}"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; other keys are ignored, an absent version means 1."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        known.setdefault("version", 1)
        for name in ("mean", "std"):
            if name in known:
                known[name] = tuple(float(value) for value in known[name])
        return cls(**known)

    def preprocessing_hash(self) -> str:
        """Hex digest that changes whenever the same bytes would give other pixels."""
        # The version applied, not the one recorded: only the former decides over pixels.
        text = json.dumps([STEPS_VERSION, {**asdict(self), "version": 0}], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def steps_note(self) -> str | None:
        """One line on how pixels differ from those of the recorded version; None if they do not."""
        if self.version == STEPS_VERSION:
            return None
        if self.version > STEPS_VERSION:
            return (
                f"made with version {self.version} of the picture steps, this amlr applies version "
                f"{STEPS_VERSION}: pictures may be prepared differently; install a newer amlr"
            )
        return (
            "made with version 1 of the picture steps, this amlr applies version 2: turned TIFFs "
            "are now upright, transparent colours of palettes and 16-bit pictures white, and float "
            "pictures scaled from their range; all other pictures are prepared as before"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is refused before any pixel is decoded.

    Attributes:
        max_bytes: Largest file.
        max_pixels: Largest width times height.
        formats: Pillow names of the formats that are opened at all. One that Pillow lacks (AVIF
            before 11.3, HEIF without the pillow-heif plugin) is refused by name.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from plain values; other keys are ignored."""
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        if "formats" in known:
            known["formats"] = tuple(known["formats"])
        return cls(**known)


def load_pixels(
    source: ImageSource, spec: ImageSpec | None = None, limits: ImageLimits | None = None
) -> Floats:
    """Read and prepare one picture.

    Args:
        source: Path, file content, or a Pillow image (never changed, except that Pillow loads it:
            where it was opened from a turned TIFF, loading turns it).
        spec: Preprocessing; the default is ImageNet's.
        limits: What to refuse.

    Returns:
        Normalised RGB, shape (3, size, size), float32.

    Raises:
        InputError: With `code` `image_missing`, `image_unreadable`, `image_too_large` or
            `image_invalid`.
    """
    limits = limits or ImageLimits()
    return decode_pixels(read_source(source, limits), spec or ImageSpec(), limits)


def read_source(source: ImageSource, limits: ImageLimits) -> "bytes | Image":
    """Bytes of a path or buffer, or the Pillow image itself; nothing is decoded.

    Raises:
        InputError: As `load_pixels`.
    """
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), limits.max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
        _check_bytes(len(content), limits.max_bytes)
        return content
    if hasattr(source, "tobytes") and hasattr(source, "getbands"):
        return source
    raise InputError(
        f"image must be a path, bytes or a Pillow image, got {type(source).__name__}",
        "image_invalid",
    )


def content_key(content: "bytes | Image", limits: ImageLimits | None = None) -> str:
    """Hash naming a picture: of the file's bytes, or of the pixels that a Pillow image shows.

    Raises:
        InputError: The Pillow image is larger than the limits (before it is loaded), or cannot be
            loaded.
    """
    digest = hashlib.sha256()
    if isinstance(content, bytes):
        digest.update(b"bytes")
        digest.update(content)
        return digest.hexdigest()
    try:
        _check_size(content, (limits or ImageLimits()).max_pixels)
        shown = to_rgb(content)
        digest.update(repr((shown.size, _turn(content))).encode())
        digest.update(shown.tobytes())
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(error) from error
    return digest.hexdigest()


def decode_pixels(content: "bytes | Image", spec: ImageSpec, limits: ImageLimits) -> Floats:
    """Decode and prepare what `read_source` returned; see `load_pixels`."""
    from PIL import Image, UnidentifiedImageError

    # Broken files make decoders raise nearly anything (struct.error, KeyError, SyntaxError, ...),
    # and whatever it is, the picture is what is wrong.
    try:
        if isinstance(content, bytes):
            with Image.open(io.BytesIO(content), formats=_readable(limits)) as image:
                _check_size(image, limits.max_pixels)
                return _prepare(image, spec, is_ours=True)
        _check_size(content, limits.max_pixels)
        return _prepare(content, spec, is_ours=False)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"picture refused: {error}; scale it down to {limits.max_pixels} pixels",
            "image_too_large",
        ) from error
    except UnidentifiedImageError as error:
        start = content[:256] if isinstance(content, bytes) else b""
        raise InputError(_unidentified(start, limits), "image_unreadable") from error
    except Exception as error:
        raise _unreadable(error) from error


def _prepare(image: "Image", spec: ImageSpec, *, is_ours: bool) -> Floats:
    from PIL import Image

    if is_ours and image.format in ("JPEG", "MPO"):
        side = spec.size if spec.resize == "squash" else round(spec.size / _CROP_SHARE)
        image.draft(None, (side, side))  # only JPEG has it, and only before loading
    rgb = to_rgb(image)
    # Pillow turns TIFFs while loading them: only now does the tag say what is left to do.
    turn = _turn(image)
    width, height = rgb.size
    box = None
    if spec.resize == "crop":
        half = min(width, height) * _CROP_SHARE / 2
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    resample = Image.Resampling[spec.resample.upper()]
    small = rgb.resize((spec.size, spec.size), resample, box=box)
    # The target is square and its box centred, so turning after the resize is the same, cheaper.
    if turn is not None:
        small = small.transpose(Image.Transpose[turn])
    scale = 1 / (255 * np.array(spec.std))
    shift = np.array(spec.mean) / np.array(spec.std)
    pixels_chw = np.ascontiguousarray(np.asarray(small).transpose(2, 0, 1), np.float32)
    pixels_chw *= scale.astype(np.float32)[:, None, None]
    pixels_chw -= shift.astype(np.float32)[:, None, None]
    return pixels_chw


_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def _turn(image: "Image") -> str | None:
    """The transposition that shows a loaded image upright, or None."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken metadata says nothing about the pixels
        return None


def _readable(limits: ImageLimits) -> tuple[str, ...]:
    """The accepted formats that Pillow knows here."""
    from PIL import Image

    if not set(limits.formats) <= Image.OPEN.keys():
        Image.init()
    return tuple(name for name in limits.formats if name in Image.OPEN)


def _unidentified(start: bytes, limits: ImageLimits) -> str:
    accepted = ", ".join(limits.formats)
    name, fix = _modern_format(start)
    if name is None:
        return f"not a picture this bundle accepts; expected one of {accepted}"
    if name not in limits.formats:
        return f"{name} picture, but this bundle accepts {accepted}; save it as JPEG or PNG"
    return f"{name} picture, which cannot be read here; save it as JPEG or PNG, or {fix}"


def _modern_format(start: bytes) -> tuple[str | None, str]:
    """Pillow's name of a format that not every Pillow reads, and what would read it."""
    if start[4:8] != b"ftyp":
        return None, ""
    # The container's brands: the main one, a version, then those it is compatible with.
    brands = {start[i : i + 4] for i in range(8, min(int.from_bytes(start[:4]), len(start)), 4)}
    if brands & {b"avif", b"avis"}:
        return "AVIF", "install Pillow 11.3 or newer"
    if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}:
        return "HEIF", "register the plugin of pillow-heif (pip install pillow-heif)"
    return None, ""


def _read_file(path: Path, max_bytes: int) -> bytes:
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{path} is no regular file; give a picture file", "image_unreadable")
        _check_bytes(info.st_size, max_bytes)
        with path.open("rb") as file:
            # A read of the size costs a third of one that could take the most that is accepted.
            content = file.read(info.st_size + 1)
            if len(content) > info.st_size:  # it grew meanwhile
                content += file.read(max_bytes + 1 - len(content))
    except FileNotFoundError as error:
        raise InputError(f"no picture at {path}; check the path", "image_missing") from error
    # An embedded NUL is a ValueError.
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot read the picture file: {error}", "image_unreadable") from error
    _check_bytes(len(content), max_bytes)
    return content


def _check_bytes(size: int, max_bytes: int) -> None:
    if size == 0:
        raise InputError("the picture is empty (0 bytes)", "image_unreadable")
    if size > max_bytes:
        raise InputError(
            f"the picture has {size} bytes, at most {max_bytes} are accepted; compress it",
            "image_too_large",
        )


def _check_size(image: "Image", max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"the picture has {width}x{height} pixels, at most {max_pixels} are accepted; "
            "scale it down",
            "image_too_large",
        )
    if width * height == 0:
        raise InputError("the picture has no pixels", "image_unreadable")


def _unreadable(error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"the picture cannot be decoded ({reason}); re-encode it", code="image_unreadable"
    )
