"""Drawn pictures of the sample dataset: people, places, organisations and things.

A drawing is a list of shapes; every picture of it varies in colours, place, size, angle, blur and
noise. The last drawing of each kind is kept for dev, so a model cannot pass by knowing them all.
No picture holds letters: the name must not be readable.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

KINDS = ("PER", "LOC", "ORG", "OTHER")
_Colour: TypeAlias = tuple[int, int, int]

# Each line: form, colour, x and y of its points in per cent of the picture. `box` and `ellipse`
# have two corners, `line` and `limb` (a thick one) any points, `grid` two corners, columns and
# rows; some of its cells stay empty. `face` places that drawing between two corners.
_FACE = """
    ellipse hair 6 -2 94 80
    box skin 34 70 66 125
    ellipse skin 12 8 88 98
    ellipse white 24 38 44 52
    ellipse white 56 38 76 52
    ellipse dark 30 38 39 52
    ellipse dark 61 38 70 52
    line hair 22 31 46 29
    line hair 54 29 78 31
    line shadow 50 45 44 66 52 67
    line lips 34 77 50 83 66 77"""
_PORTRAIT = """
    ellipse shirt 4 78 96 150
    face 25 12 75 74"""
_STANDING = """
    box ground -50 84 150 150
    limb trousers 46 60 43 93
    limb trousers 54 60 58 93
    limb skin 43 40 28 54
    limb skin 57 40 73 50
    box shirt 39 36 61 66
    face 40 8 60 34"""
_GROUP = """
    ellipse shirt 2 66 48 150
    face 12 28 38 62
    ellipse coat 50 62 100 150
    face 60 20 88 58"""
_SKYLINE = """
    box sky -50 -50 150 95
    ellipse sun 12 8 24 20
    box wall 2 42 20 90
    grid light 4 46 18 86 4 7
    box tower 24 18 40 90
    grid light 26 22 38 86 3 10
    polygon tower 24 18 32 4 40 18
    box house 44 50 64 90
    grid light 46 54 62 86 5 6
    box wall 68 28 82 90
    grid light 70 32 80 86 3 9
    box tower 86 46 99 90
    grid light 88 50 97 86 3 6
    box ground -50 90 150 150"""
_MAP = """
    box paper -50 -50 150 150
    ellipse park 8 12 34 36
    ellipse park 62 58 96 92
    limb water -20 62 20 50 52 64 80 44 120 48
    line road -20 28 120 40
    line road 18 -20 30 120
    line road 62 -20 54 120
    line road -20 84 120 70
    line road 88 -20 96 120
    polygon pin 44 36 58 36 51 58
    ellipse pin 42 22 60 42
    ellipse white 48 28 54 36"""
_MOUNTAINS = """
    box sky -50 -50 150 80
    ellipse sun 76 8 88 20
    polygon rock -30 74 14 22 34 50 52 14 78 54 96 30 130 74
    polygon white 45 26 52 14 59 26
    polygon white 9 30 14 22 20 30
    polygon hill -30 84 20 52 60 78 90 58 130 84
    box water -50 80 150 150
    polygon tree 8 94 14 70 20 94
    polygon tree 24 98 30 72 36 98
    polygon tree 78 96 84 70 90 96"""
_STOREFRONT = """
    box wall -50 -50 150 88
    box ground -50 88 150 150
    box sign 10 6 90 26
    grid white 20 12 80 20 9 1
    box awning 6 30 94 44
    grid white 6 30 94 44 8 1
    box glass 8 48 44 80
    box glass 66 48 94 80
    grid goods 10 64 42 80 4 1
    grid goods 68 64 92 80 3 1
    box door 48 48 62 88
    ellipse light 58 66 61 70"""
_EMBLEM = """
    box plain -50 -50 150 150
    ellipse main 26 14 74 62
    ellipse second 35 23 65 53
    polygon main 36 45 50 22 64 45
    grid main 20 74 80 86 10 1"""
_BILLBOARD = """
    box sky -50 -50 150 150
    box dark 28 60 32 150
    box dark 68 60 72 150
    box shadow 8 16 92 64
    box main 10 18 90 62
    ellipse white 15 27 35 53
    polygon main 20 44 25 31 30 44
    grid white 40 28 84 40 7 1
    grid second 40 47 74 53 7 1"""
_PHONE = """
    box cloth -50 -50 150 62
    box wood -50 62 150 150
    box dark 34 12 66 88
    box screen 37 18 63 80
    grid main 39 22 61 48 3 2
    grid second 39 50 61 76 3 2
    ellipse shadow 48 82 52 86"""
_CAR = """
    box sky -50 -50 150 70
    box road -50 70 150 150
    polygon main 26 48 38 30 64 30 78 48
    box main 10 46 90 68
    polygon glass 33 47 40 34 50 34 50 47
    polygon glass 53 47 53 34 62 34 70 47
    ellipse dark 19 59 37 79
    ellipse dark 63 59 81 79
    ellipse plain 23 64 33 74
    ellipse plain 67 64 77 74
    ellipse light 85 51 91 57"""
_BOTTLE = """
    box cloth -50 -50 150 62
    box wood -50 62 150 150
    box main 40 38 60 88
    polygon main 40 40 47 26 53 26 60 40
    box main 47 14 53 28
    box second 46 9 54 15
    box plain 40 52 60 70
    line light 44 42 44 84"""
DRAWINGS = {
    "PER": (_PORTRAIT, _STANDING, _GROUP),
    "LOC": (_SKYLINE, _MAP, _MOUNTAINS),
    "ORG": (_STOREFRONT, _EMBLEM, _BILLBOARD),
    "OTHER": (_PHONE, _CAR, _BOTTLE),
}
# What these are called has one of these colours; all else may have any.
_PALETTE: dict[str, tuple[_Colour, ...]] = {
    "skin": ((244, 208, 177), (224, 172, 125), (176, 120, 80), (110, 70, 46)),
    "hair": ((40, 28, 20), (96, 60, 30), (200, 160, 90), (150, 60, 30), (120, 120, 120)),
    "lips": ((170, 60, 60),),
    "white": ((248, 248, 245),),
    "dark": ((35, 35, 42),),
    "shadow": ((110, 90, 80),),
    "light": ((240, 220, 140),),
    "sky": ((120, 180, 235), (250, 190, 130), (60, 80, 130), (190, 210, 225)),
    "sun": ((255, 240, 180),),
    "ground": ((90, 90, 95), (130, 130, 130), (110, 150, 90)),
    "paper": ((236, 230, 212),),
    "park": ((196, 222, 178),),
    "water": ((150, 195, 230), (70, 130, 170)),
    "road": ((255, 255, 255), (250, 205, 110), (95, 95, 100)),
    "pin": ((215, 45, 45),),
    "rock": ((90, 110, 130),),
    "hill": ((80, 120, 80), (70, 90, 110)),
    "tree": ((30, 80, 50),),
    "glass": ((190, 220, 235),),
    "plain": ((250, 250, 250), (30, 40, 60)),
    "wood": ((170, 125, 85), (110, 80, 60)),
}


def draw_picture(kind: str, rng: np.random.Generator, *, is_dev: bool) -> Image.Image:
    """Draw one picture.

    Args:
        kind: One of `KINDS`.
        rng: Decides everything.
        is_dev: A third of the dev pictures come from a drawing that training never sees.
    """
    drawings = DRAWINGS[kind]
    known = len(drawings) - 1
    number = known if is_dev and rng.random() < 1 / 3 else int(rng.integers(known))
    width, height = int(rng.integers(200, 340)), int(rng.integers(200, 300))
    ground = tuple(int(part) for part in rng.integers(90, 245, 3))
    image = Image.new("RGB", (width, height), ground)
    corners = np.array([[0.0, 0.0], [width, height]]) + rng.uniform(-0.1, 0.1, (2, 2)) * width
    if rng.random() < 0.5:
        corners[:, 0] = corners[::-1, 0]
    _draw(ImageDraw.Draw(image), drawings[number], corners, {}, rng)
    if rng.random() < 0.3:
        image = image.rotate(float(rng.uniform(-7, 7)), Image.Resampling.BILINEAR, fillcolor=ground)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.2))))
    pixels = np.asarray(image, np.float32) * rng.uniform(0.8, 1.15)
    pixels += rng.normal(0, rng.uniform(1, 9), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _draw(
    draw: ImageDraw.ImageDraw,
    drawing: str,
    corners_22: npt.NDArray[np.float64],
    colours: dict[str, _Colour],
    rng: np.random.Generator,
) -> None:
    """Draw between two corners, in pixels; a colour of a name is chosen once."""
    origin, size = corners_22[0], corners_22[1] - corners_22[0]
    width = float(abs(size[0]))
    for line in drawing.strip().splitlines():
        form, *words = line.split()
        name = form if form == "face" else words.pop(0)
        counts = [int(words.pop()) for _ in range(2)] if form == "grid" else []
        points = np.array(words, np.float64).reshape(-1, 2) + rng.normal(
            0, 0.7, (len(words) // 2, 2)
        )
        points = origin + points / 100 * size
        if form == "face":
            _draw(draw, _FACE, points, dict(colours), rng)
            continue
        if name not in colours:
            colours[name] = _choose_colour(name, rng)
        fill, path = colours[name], [(x, y) for x, y in points.tolist()]
        if form == "polygon":
            draw.polygon(path, fill)
        elif form in ("line", "limb"):
            share = 0.02 if form == "line" else 0.07
            draw.line(path, fill, max(1, round(share * width)), joint="curve")
        elif form == "ellipse":
            draw.ellipse(_ordered(points), fill)
        elif form == "box":
            draw.rectangle(_ordered(points), fill)
        else:
            cell = (points[1] - points[0]) / counts[::-1]
            for place in np.ndindex(*counts[::-1]):
                corner = points[0] + cell * place
                if rng.random() < 0.75:
                    draw.rectangle(_ordered(np.stack([corner, corner + 0.6 * cell])), fill)


def _ordered(corners_22: npt.NDArray[np.float64]) -> list[float]:
    """Left, top, right, bottom."""
    return [float(value) for value in np.sort(corners_22, axis=0).reshape(-1)]


def _choose_colour(name: str, rng: np.random.Generator) -> _Colour:
    choices = _PALETTE.get(name)
    base = choices[int(rng.integers(len(choices)))] if choices else rng.integers(30, 225, 3)
    red, green, blue = np.clip(np.array(base) * rng.uniform(0.88, 1.1), 0, 255).astype(int).tolist()
    return red, green, blue
