"""A canvas in shares of its size, for the drawn pictures of the sample dataset."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]


@dataclass(slots=True)
class Canvas:
    """A picture in progress; positions and sizes are shares 0..1 of its width and height."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    rng: np.random.Generator

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        return x * self.image.width, y * self.image.height

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """Ellipse by centre and radii."""
        self.draw.ellipse([self.at(x - rx, y - ry), self.at(x + rx, y + ry)], fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Filled rectangle."""
        self.draw.rectangle([self.at(left, top), self.at(right, bottom)], fill=fill)

    def rounded(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Filled rectangle with round corners."""
        radius = 0.04 * self.image.width
        self.draw.rounded_rectangle([self.at(left, top), self.at(right, bottom)], radius, fill=fill)

    def polygon(self, points: list[tuple[float, float]], fill: Colour) -> None:
        """Filled polygon."""
        self.draw.polygon([self.at(x, y) for x, y in points], fill=fill)

    def line(self, points: list[tuple[float, float]], fill: Colour, width: float) -> None:
        """Line; the width is a share of the picture's."""
        pixels = max(1, round(width * self.image.width))
        self.draw.line([self.at(x, y) for x, y in points], fill=fill, width=pixels, joint="curve")

    def arc(
        self, x: float, y: float, rx: float, ry: float, angles: tuple[int, int], fill: Colour
    ) -> None:
        """Thick arc by centre and radii."""
        width = max(2, round(0.012 * self.image.width))
        self.draw.arc([self.at(x - rx, y - ry), self.at(x + rx, y + ry)], *angles, fill, width)

    def uniform(self, low: float, high: float) -> float:
        """A random number."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """A random whole number, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def colour(self, low: int = 30, high: int = 225) -> Colour:
        """A random colour."""
        red, green, blue = self.rng.integers(low, high, 3).tolist()
        return red, green, blue

    def pick(self, colours: Sequence[Colour]) -> Colour:
        """One of some colours."""
        return colours[self.count(0, len(colours) - 1)]

    def tone(self, colours: Sequence[Colour], low: float, high: float) -> Colour:
        """One of some colours, darker or lighter by a random factor."""
        return shade(self.pick(colours), self.uniform(low, high))

    def word(self, left: float, top: float, right: float, bottom: float, fill: Colour) -> None:
        """Bars like the letters of a sign; no letters, the name must not be readable."""
        x = left
        while x < right - 0.03:
            width = self.uniform(0.025, 0.06)
            self.box(x, top + self.uniform(0, 0.25) * (bottom - top), x + width, bottom, fill)
            x += width + 0.014


def shade(colour: Colour, factor: float) -> Colour:
    """Lighter (above 1) or darker."""
    red, green, blue = (min(255, round(part * factor)) for part in colour)
    return red, green, blue
