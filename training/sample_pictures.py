"""Drawn pictures of the sample dataset: people, places, organisations and things.

Each kind has several drawing styles, and every drawing varies in colours, layout, size and noise.
The last style of each kind is kept for dev, so a model cannot pass by knowing the drawings.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from amlr.training.sample_canvas import Canvas, shade

KINDS = ("PER", "LOC", "ORG", "OTHER")


_SKIN = ((244, 208, 177), (224, 172, 125), (176, 120, 80), (110, 70, 46))
_HAIR = ((40, 28, 20), (96, 60, 30), (200, 160, 90), (150, 60, 30), (120, 120, 120))
_SKY = ((120, 180, 235), (250, 190, 130), (60, 80, 130), (190, 210, 225))
_ROADS = ((255, 255, 255), (250, 205, 110), (245, 160, 90))
_GLASS = (190, 220, 235)


def _head(c: Canvas, x: float, y: float, size: float) -> None:
    skin, hair = c.tone(_SKIN, 0.92, 1.06), c.tone(_HAIR, 0.85, 1.15)
    c.ellipse(x, y - 0.16 * size, 0.56 * size, 0.68 * size, hair)
    if c.count(0, 1):
        c.box(x - 0.56 * size, y - 0.16 * size, x + 0.56 * size, y + 0.75 * size, hair)
    c.box(x - 0.18 * size, y + 0.4 * size, x + 0.18 * size, y + 1.0 * size, shade(skin, 0.9))
    c.ellipse(x, y, 0.46 * size, 0.62 * size, skin)
    for side in (-1, 1):
        eye = x + side * 0.18 * size
        c.ellipse(eye, y - 0.08 * size, 0.09 * size, 0.06 * size, (250, 250, 250))
        c.ellipse(eye, y - 0.08 * size, 0.045 * size, 0.05 * size, (40, 40, 50))
        brow = [(eye - 0.1 * size, y - 0.2 * size), (eye + 0.1 * size, y - 0.22 * size)]
        c.line(brow, hair, 0.05 * size)
    nose = [(x, y - 0.02 * size), (x - 0.05 * size, y + 0.15 * size)]
    c.line(nose, shade(skin, 0.75), 0.03 * size)
    c.arc(x, y + 0.2 * size, 0.2 * size, 0.14 * size, (20, 160), (170, 60, 60))


def _portrait(c: Canvas) -> None:
    x, size = c.uniform(0.4, 0.6), c.uniform(0.34, 0.48)
    y = c.uniform(0.36, 0.44)
    c.ellipse(x, y + 1.45 * size, 1.05 * size, 0.7 * size, c.colour())
    _head(c, x, y, size)


def _standing(c: Canvas) -> None:
    x, size = c.uniform(0.35, 0.65), c.uniform(0.17, 0.22)
    top = c.uniform(0.16, 0.24)
    shirt, trousers, skin = c.colour(), c.colour(20, 120), c.tone(_SKIN, 0.92, 1.06)
    c.box(0, 0.86, 1, 1, c.colour(90, 170))
    for side in (-1, 1):
        c.line([(x + side * 0.05, 0.58), (x + side * 0.08, 0.92)], trousers, 0.07)
        hand = (x + side * c.uniform(0.16, 0.26), c.uniform(0.3, 0.6))
        c.line([(x + side * 0.08, top + 1.15 * size), hand], skin, 0.04)
    c.rounded(x - 0.11, top + 0.9 * size, x + 0.11, 0.62, shirt)
    _head(c, x, top, size)


def _group(c: Canvas) -> None:
    people = c.count(2, 3)
    for number in range(people):
        x = (number + 0.5) / people + c.uniform(-0.04, 0.04)
        size, y = c.uniform(0.2, 0.28), c.uniform(0.38, 0.5)
        c.ellipse(x, y + 1.6 * size, 0.95 * size, 0.75 * size, c.colour())
        _head(c, x, y, size)


def _sketch(c: Canvas) -> None:
    c.box(0, 0, 1, 1, shade((245, 240, 228), c.uniform(0.9, 1.03)))
    ink, x, size = c.colour(10, 90), c.uniform(0.42, 0.58), c.uniform(0.36, 0.46)
    y = c.uniform(0.38, 0.46)
    c.arc(x, y, 0.46 * size, 0.62 * size, (0, 360), ink)
    for number in range(c.count(14, 24)):
        angle = math.pi * (1.05 + 0.9 * number / 24)
        start = (x + 0.44 * size * math.cos(angle), y + 0.6 * size * math.sin(angle))
        stop = (start[0] + c.uniform(-0.05, 0.05), start[1] - c.uniform(0.02, 0.12))
        c.line([start, stop], ink, 0.01)
    for side in (-1, 1):
        c.arc(x + side * 0.18 * size, y - 0.08 * size, 0.09 * size, 0.06 * size, (0, 360), ink)
        c.ellipse(x + side * 0.18 * size, y - 0.08 * size, 0.03 * size, 0.04 * size, ink)
        c.line([(x + side * 0.2 * size, y + 0.6 * size), (x + side * 0.9 * size, 1.0)], ink, 0.01)
    c.line([(x, y), (x - 0.06 * size, y + 0.16 * size), (x, y + 0.18 * size)], ink, 0.01)
    c.arc(x, y + 0.24 * size, 0.2 * size, 0.12 * size, (15, 165), ink)


def _sky(c: Canvas, horizon: float) -> None:
    top = c.tone(_SKY, 0.9, 1.1)
    for band in range(12):
        c.box(0, horizon * band / 12, 1, horizon * (band + 1) / 12, shade(top, 1 + 0.03 * band))
    c.ellipse(c.uniform(0.1, 0.9), c.uniform(0.08, 0.25), 0.06, 0.06, (255, 240, 180))


def _skyline(c: Canvas) -> None:
    _sky(c, 0.9)
    left = -0.03
    while left < 1.0:
        width, top = c.uniform(0.06, 0.15), c.uniform(0.18, 0.62)
        wall = c.colour(50, 130)
        c.box(left, top, left + width, 0.9, wall)
        if c.count(0, 3) == 0:
            roof = [(left, top), (left + width / 2, top - 0.12), (left + width, top)]
            c.polygon(roof, shade(wall, 0.8))
        for row in np.arange(top + 0.04, 0.86, 0.06).tolist():
            for column in np.arange(left + 0.015, left + width - 0.015, 0.03).tolist():
                if c.count(0, 2):
                    c.box(column, row, column + 0.014, row + 0.028, (240, 220, 140))
        left += width + c.uniform(0.0, 0.02)
    c.box(0, 0.9, 1, 1, c.colour(60, 110))


def _mountains(c: Canvas) -> None:
    _sky(c, 0.75)
    for layer in range(3):
        rock = shade((90, 110, 130), 1.2 - 0.25 * layer)
        base = 0.6 + 0.08 * layer
        points = [(-0.1, base)]
        x = -0.1
        while x < 1.1:
            peak = (x + c.uniform(0.1, 0.2), base - c.uniform(0.15, 0.42) + 0.1 * layer)
            points += [peak, (peak[0] + c.uniform(0.08, 0.16), base)]
            if layer == 0:
                tip = peak[1] + 0.07
                snow = [(peak[0] - 0.04, tip), peak, (peak[0] + 0.04, tip)]
                c.polygon(snow, (245, 248, 250))
            x = points[-1][0]
        c.polygon([*points, (1.1, 1.0), (-0.1, 1.0)], rock)
    c.box(0, 0.78, 1, 1, (70, 130, 170) if c.count(0, 1) else (80, 140, 80))
    for _ in range(c.count(4, 12)):
        x, y = c.uniform(0, 1), c.uniform(0.74, 0.92)
        c.polygon([(x - 0.03, y), (x, y - 0.13), (x + 0.03, y)], (30, 80, 50))


def _map(c: Canvas) -> None:
    c.box(0, 0, 1, 1, shade((236, 230, 212), c.uniform(0.92, 1.05)))
    for _ in range(c.count(2, 5)):
        x, y = c.uniform(0, 1), c.uniform(0, 1)
        c.ellipse(x, y, c.uniform(0.06, 0.2), c.uniform(0.06, 0.2), (196, 222, 178))
    river = [(number / 6, c.uniform(0.3, 0.7)) for number in range(-1, 8)]
    c.line(river, (150, 195, 230), 0.06)
    for _ in range(c.count(5, 9)):
        if c.count(0, 1):
            ends = [(c.uniform(0, 1), 0.0), (c.uniform(0, 1), 1.0)]
        else:
            ends = [(0.0, c.uniform(0, 1)), (1.0, c.uniform(0, 1))]
        c.line(ends, c.pick(_ROADS), c.uniform(0.008, 0.022))
    x, y = c.uniform(0.3, 0.7), c.uniform(0.35, 0.65)
    c.polygon([(x - 0.05, y - 0.1), (x + 0.05, y - 0.1), (x, y)], (215, 45, 45))
    c.ellipse(x, y - 0.12, 0.055, 0.06, (215, 45, 45))
    c.ellipse(x, y - 0.12, 0.022, 0.025, (255, 255, 255))


def _landmark(c: Canvas) -> None:
    _sky(c, 0.85)
    c.box(0, 0.84, 1, 1, (110, 150, 90))
    stone = c.colour(110, 190)
    x = c.uniform(0.4, 0.6)
    if c.count(0, 1):
        for height, half in ((0.84, 0.24), (0.55, 0.12), (0.34, 0.05)):
            c.polygon([(x - half, height), (x + half, height), (x, 0.08)], shade(stone, half * 3))
        c.arc(x, 0.86, 0.13, 0.16, (180, 360), (230, 235, 240))
        c.line([(x, 0.02), (x, 0.12)], stone, 0.012)
    else:
        c.polygon([(x - 0.38, 0.4), (x + 0.38, 0.4), (x, 0.22)], shade(stone, 1.1))
        c.box(x - 0.36, 0.4, x + 0.36, 0.45, stone)
        for column in np.linspace(x - 0.32, x + 0.28, c.count(5, 7)).tolist():
            c.box(column, 0.45, column + 0.05, 0.8, shade(stone, 1.2))
        c.box(x - 0.42, 0.8, x + 0.42, 0.86, shade(stone, 0.8))


def _storefront(c: Canvas) -> None:
    wall, awning = c.colour(90, 200), c.colour()
    c.box(0, 0, 1, 0.88, wall)
    c.box(0, 0.88, 1, 1, (130, 130, 130))
    c.rounded(0.1, 0.06, 0.9, 0.26, shade(awning, 0.7))
    c.word(0.2, 0.12, 0.8, 0.2, (250, 250, 240))
    stripes = c.count(7, 11)
    for number in range(stripes):
        fill = awning if number % 2 else (245, 245, 245)
        c.box(0.06 + 0.88 * number / stripes, 0.3, 0.06 + 0.88 * (number + 1) / stripes, 0.43, fill)
    door = c.uniform(0.12, 0.6)
    for left in (0.08, 0.54):
        c.box(left, 0.47, left + 0.38, 0.82, _GLASS)
        for _ in range(c.count(2, 4)):
            x = left + c.uniform(0.02, 0.3)
            c.box(x, 0.66, x + 0.06, 0.82, c.colour())
    c.box(door, 0.47, door + 0.18, 0.88, shade(wall, 0.5))
    c.ellipse(door + 0.15, 0.68, 0.012, 0.014, (240, 220, 120))


def _emblem(c: Canvas) -> None:
    c.box(0, 0, 1, 1, (252, 252, 252) if c.count(0, 1) else c.colour(10, 60))
    main, second = c.colour(), c.colour()
    x, y, size = 0.5, c.uniform(0.36, 0.44), c.uniform(0.2, 0.27)
    form = c.count(0, 3)
    if form == 0:
        c.ellipse(x, y, size, size, main)
        c.ellipse(x, y, 0.62 * size, 0.62 * size, second)
        c.polygon([(x - 0.5 * size, y), (x, y - 0.5 * size), (x + 0.5 * size, y)], main)
    elif form == 1:
        for number in range(3):
            left = x - size + number * 0.7 * size
            c.box(left, y + size * (0.2 - 0.4 * number), left + 0.5 * size, y + size, main)
    elif form == 2:
        star = []
        for n in range(10):
            reach, angle = size * (1.0 if n % 2 else 0.45), n * math.pi / 5 + 0.3
            star.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        c.polygon(star, main)
    else:
        for reach, fill in ((size, main), (0.5 * size, second)):
            c.polygon([(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)], fill)
    c.word(c.uniform(0.18, 0.28), 0.74, c.uniform(0.72, 0.84), 0.84, main)


def _office(c: Canvas) -> None:
    _sky(c, 0.9)
    glass, left, right = c.colour(60, 150), c.uniform(0.1, 0.22), c.uniform(0.78, 0.9)
    c.box(left, 0.12, right, 0.9, glass)
    rows, columns = c.count(6, 9), c.count(5, 8)
    for row in range(rows):
        for column in range(columns):
            x = left + 0.02 + (right - left - 0.03) * column / columns
            y = 0.3 + 0.44 * row / rows
            c.box(x, y, x + 0.6 * (right - left) / columns, y + 0.028, shade(glass, 1.7))
    c.box(left + 0.06, 0.15, right - 0.06, 0.26, (250, 250, 250))
    c.ellipse(left + 0.13, 0.205, 0.035, 0.04, c.colour())
    c.word(left + 0.2, 0.175, right - 0.1, 0.235, c.colour(20, 120))
    c.box(0.44, 0.76, 0.56, 0.9, (40, 50, 60))
    c.box(0, 0.9, 1, 1, (120, 125, 130))


def _billboard(c: Canvas) -> None:
    _sky(c, 1.0)
    panel, ink = c.colour(), (250, 250, 245)
    for x in (0.3, 0.7):
        c.box(x - 0.02, 0.6, x + 0.02, 1.0, (90, 90, 95))
    c.rounded(0.08, 0.16, 0.92, 0.64, (70, 70, 75))
    c.rounded(0.1, 0.18, 0.9, 0.62, panel)
    c.ellipse(0.25, 0.4, 0.1, 0.13, ink)
    c.polygon([(0.2, 0.44), (0.25, 0.3), (0.3, 0.44)], panel)
    c.word(0.4, 0.28, c.uniform(0.7, 0.86), 0.4, ink)
    c.word(0.4, 0.47, c.uniform(0.6, 0.8), 0.53, shade(panel, 1.6))


def _table(c: Canvas) -> None:
    c.box(0, 0, 1, 0.62, c.colour(150, 235))
    c.box(0, 0.62, 1, 1, shade((170, 125, 85), c.uniform(0.7, 1.2)))


def _phone(c: Canvas) -> None:
    _table(c)
    x, half = c.uniform(0.4, 0.6), c.uniform(0.13, 0.17)
    c.rounded(x - half, 0.12, x + half, 0.88, (25, 25, 30))
    c.box(x - half + 0.02, 0.18, x + half - 0.02, 0.8, c.colour(60, 200))
    for row in range(4):
        for column in range(3):
            left = x - half + 0.035 + column * (2 * half - 0.06) / 3
            c.rounded(left, 0.22 + 0.13 * row, left + 0.055, 0.3 + 0.13 * row, c.colour())
    c.ellipse(x, 0.84, 0.018, 0.022, (120, 120, 125))


def _car(c: Canvas) -> None:
    _sky(c, 0.7)
    c.box(0, 0.7, 1, 1, (95, 95, 100))
    body, shift = c.colour(), c.uniform(-0.06, 0.06)
    for fill, points in (
        (body, ((0.28, 0.48), (0.38, 0.3), (0.64, 0.3), (0.76, 0.48))),
        (_GLASS, ((0.33, 0.47), (0.4, 0.34), (0.5, 0.34), (0.5, 0.47))),
        (_GLASS, ((0.53, 0.47), (0.53, 0.34), (0.62, 0.34), (0.7, 0.47))),
    ):
        c.polygon([(x + shift, y) for x, y in points], fill)
    c.rounded(0.1 + shift, 0.46, 0.9 + shift, 0.68, body)
    for x in (0.28 + shift, 0.72 + shift):
        c.ellipse(x, 0.69, 0.085, 0.1, (25, 25, 28))
        c.ellipse(x, 0.69, 0.045, 0.05, (180, 180, 185))
    c.ellipse(0.88 + shift, 0.54, 0.02, 0.03, (255, 240, 170))


def _bottle(c: Canvas) -> None:
    _table(c)
    for _ in range(c.count(1, 2)):
        x, glass = c.uniform(0.25, 0.75), c.colour(20, 170)
        c.rounded(x - 0.09, 0.36, x + 0.09, 0.86, glass)
        c.polygon([(x - 0.09, 0.4), (x - 0.03, 0.26), (x + 0.03, 0.26), (x + 0.09, 0.4)], glass)
        c.box(x - 0.03, 0.14, x + 0.03, 0.28, glass)
        c.box(x - 0.035, 0.1, x + 0.035, 0.15, c.colour())
        c.box(x - 0.09, 0.5, x + 0.09, 0.68, (245, 240, 225))
        c.line([(x - 0.06, 0.42), (x - 0.06, 0.84)], shade(glass, 1.6), 0.012)


def _sneaker(c: Canvas) -> None:
    _table(c)
    upper, sole = c.colour(), (245, 245, 245)
    shift, top = c.uniform(-0.05, 0.05), c.uniform(0.34, 0.42)
    outline = ((0.14, 0), (0.32, -0.04), (0.5, 0.14), (0.78, 0.22), (0.88, 0.34), (0.12, 0.34))
    c.polygon([(x + shift, top + y) for x, y in outline], upper)
    c.rounded(0.1 + shift, top + 0.32, 0.9 + shift, top + 0.41, sole)
    for number in range(5):
        x = 0.36 + shift + 0.05 * number
        y = top + 0.02 + 0.036 * number
        c.line([(x, y), (x + 0.06, y - 0.05)], sole, 0.012)
    stripe = ((0.3, 0.28), (0.62, 0.17), (0.42, 0.24))
    c.polygon([(x + shift, top + y) for x, y in stripe], sole)


STYLES: dict[str, tuple[Callable[[Canvas], None], ...]] = {
    "PER": (_portrait, _standing, _group, _sketch),
    "LOC": (_skyline, _map, _landmark, _mountains),
    "ORG": (_storefront, _emblem, _office, _billboard),
    "OTHER": (_phone, _car, _sneaker, _bottle),
}


def draw_picture(kind: str, rng: np.random.Generator, *, is_dev: bool) -> Image.Image:
    """Draw one picture.

    Args:
        kind: One of `KINDS`.
        rng: Decides everything.
        is_dev: A third of the dev pictures come from a style that training never sees.
    """
    styles = STYLES[kind]
    known = len(styles) - 1
    style = known if is_dev and rng.random() < 1 / 3 else int(rng.integers(known))
    width, height = int(rng.integers(200, 340)), int(rng.integers(200, 300))
    ground = tuple(int(part) for part in rng.integers(90, 245, 3))
    image = Image.new("RGB", (width, height), ground)
    canvas = Canvas(image, ImageDraw.Draw(image), rng)
    styles[style](canvas)
    if rng.random() < 0.3:
        image = image.rotate(float(rng.uniform(-7, 7)), Image.Resampling.BILINEAR, fillcolor=ground)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.4, 1.2))))
    pixels = np.asarray(image, np.float32) * rng.uniform(0.8, 1.15)
    pixels += rng.normal(0, rng.uniform(1, 9), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
