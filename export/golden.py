"""Golden samples: a few inputs with the eager model's outputs, checked again at every load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from amlr.runtime.engine import Engine
from amlr.runtime.image import load_pixels
from amlr.runtime.results import Post


def write_golden(path: Path, eager: Engine, posts: Sequence[Post]) -> None:
    """Run the eager model on the posts and write inputs and outputs.

    Args:
        path: File to write.
        eager: Engine on the eager model.
        posts: Posts whose picture, if any, is given as PNG bytes.
    """
    manifest = eager.manifest
    images = list(dict.fromkeys(post.image for post in posts if isinstance(post.image, bytes)))
    tensors: dict[str, npt.NDArray[Any]] = {}
    for i, image in enumerate(images):
        tensors[f"image.{i}"] = np.frombuffer(image, np.uint8)
        tensors[f"pixels.{i}"] = load_pixels(image, manifest.image, manifest.limits)
    listed = []
    answers = zip(posts, eager.raw(posts), eager.tag_batch(posts), strict=True)
    for j, (post, raw, result) in enumerate(answers):
        tensors |= {
            f"{j}.input_ids": raw.input_ids,
            f"{j}.unit_starts": raw.unit_starts,
            f"{j}.unit_ends": raw.unit_ends,
            f"{j}.unit_logits": raw.unit_logits,
            f"{j}.emissions": raw.emissions,
        }
        listed.append(
            {
                "text": post.text,
                "words": None,
                "image": images.index(post.image) if isinstance(post.image, bytes) else None,
                "entities": [entity.to_dict() for entity in result.entities],
            }
        )
    save_golden(path, listed, tensors)


def save_golden(
    path: Path, posts: list[dict[str, Any]], tensors: dict[str, npt.NDArray[Any]]
) -> None:
    """Write the golden file from its parts."""
    save_file(
        {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
        path,
        metadata={"posts": json.dumps(posts, ensure_ascii=False)},
    )
