"""Real-looking posts and pictures that every export is verified on.

They are invented here, so a bundle carries nobody's posts. Lengths, words and scripts vary on
purpose: one word, a hundred words, URLs, hashtags, emoji, right-to-left text.
"""

import io
import itertools
import random

import numpy as np
from PIL import Image

from amlr.runtime.results import Post

_NAMES = (
    "Maria Lopez", "Jordan Hayes", "Paris", "Lake Geneva", "New Orleans", "Apple", "Red Cross",
    "University of Leeds", "Chelsea FC", "Game of Thrones", "Windows 12", "Oktoberfest",
    "Sir Ian", "O'Neill", "St. Louis", "Jean-Luc Martin", "NASA", "WHO", "Tokyo Marathon",
)  # fmt: skip
_FRAMES = (
    "{a} at {b} tonight", "RT @newsdesk : {a} says {b} will open in May", "so proud of {a} !!!",
    "Photo : {a} , {b} and {c} after the game http://example.com/x7Gh2",
    "{a}", "can't believe {a} left {b} ... #sad", "Breaking : {a} visits {b} with {c} ( via @tv )",
    "good morning from {b} ☀️", "{a} vs {b} : who wins ? {c} decides",
)  # fmt: skip
_EXTRA = (
    "ok", "no names in this one , just words", "👨‍👩‍👧 family day 🇫🇷 in Lyon",
    "مرحبا من القاهرة", "Cafe\u0301 de Flore , Paris", "antidisestablishmentarianism in Wales",
)  # fmt: skip


def sample_texts(count: int, seed: int = 0) -> list[str]:
    """Invent posts of very different lengths; the same seed gives the same posts."""
    rng = random.Random(seed)
    texts = list(_EXTRA[:count])
    for number in itertools.count():
        if len(texts) >= count:
            break
        parts = []
        # Mostly one sentence, sometimes many: the longest reach the usual limit of a post.
        for _ in range(1 if number % 4 else rng.randint(2, 6)):
            names = rng.sample(_NAMES, 3)
            parts.append(rng.choice(_FRAMES).format(a=names[0], b=names[1], c=names[2]))
        texts.append(" . ".join(parts))
    return texts


def sample_image(seed: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A smooth random picture with edges, as PNG bytes."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = []
    for _ in range(3):
        fx, fy, phase = rng.uniform(0.005, 0.08), rng.uniform(0.005, 0.08), rng.uniform(0, 6.28)
        planes.append(127 + 90 * np.sin(fx * x + fy * y + phase) + 37 * (x > width * rng.random()))
    pixels = np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(file, format="PNG")
    return file.getvalue()


def sample_posts(count: int, images: int = 3, seed: int = 0) -> list[Post]:
    """Invented posts; two of three carry one of `images` pictures, so some pictures repeat."""
    pictures = [sample_image(seed + i) for i in range(images)]
    return [
        Post(text, pictures[i % images] if images and i % 3 != 2 else None)
        for i, text in enumerate(sample_texts(count, seed))
    ]
