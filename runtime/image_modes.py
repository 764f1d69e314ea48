"""Any Pillow mode as the 8-bit RGB that a viewer shows over white."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL.Image import Image


def to_rgb(image: "Image") -> "Image":
    """Convert any mode to RGB: deep modes by scaling, transparency over white.

    Loads the image; the result may be the image itself.
    """
    from PIL import Image

    image.load()
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _deep_to_rgb(image)
    if not _has_transparency(image):
        return image if image.mode == "RGB" else image.convert("RGB")
    # Pillow has no direct way from La.
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _has_transparency(image: "Image") -> bool:
    # Pillow's has_transparency_data fails on a palette image without a palette.
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return True
    return image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")


def _deep_to_rgb(image: "Image") -> "Image":
    from PIL import Image

    values = np.asarray(image)
    shown = _to_8_bit(values, image.mode)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        shown[values == transparent] = 255
    return Image.fromarray(shown).convert("RGB")


def _to_8_bit(values: npt.NDArray[Any], mode: str) -> npt.NDArray[np.uint8]:
    values = values.astype(np.float32)
    most = values.max(initial=0, where=np.isfinite(values))
    # Modes I and F carry no range of their own: it is taken from the largest value.
    if mode == "F":
        # Filters overshoot their range, but not by as much again.
        full = next((full for full in (1, 255) if most <= 2 * full), 65535)
    else:
        full = 65535 if mode != "I" or most > 255 else 255
    shown: npt.NDArray[np.float32] = np.clip(np.nan_to_num(values), 0, full) * (255 / full)
    return np.rint(shown).astype(np.uint8)
