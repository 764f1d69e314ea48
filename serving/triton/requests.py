"""Triton requests to posts, and results to Triton responses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from amlr.errors import InputError
from amlr.runtime.results import Post, Result
from amlr.serving.encoding import json_bytes


def read_posts(pb: Any, request: Any) -> list[Post]:
    """Posts of one request, in row-major order; an empty picture is none.

    Args:
        pb: Triton's `triton_python_backend_utils`.
        request: Its request, with `text` and perhaps `image`.

    Raises:
        InputError: The tensors do not fit each other, or a text is no UTF-8.
    """
    text = pb.get_input_tensor_by_name(request, "text")
    if text is None:
        raise InputError("the input 'text' is missing")
    texts = text.as_numpy().reshape(-1).tolist()
    image = pb.get_input_tensor_by_name(request, "image")
    images = [b""] * len(texts) if image is None else image.as_numpy().reshape(-1).tolist()
    if len(images) != len(texts):
        raise InputError(f"'image' has {len(images)} elements and 'text' {len(texts)}")
    return [
        Post(_text(text), bytes(image) or None) for text, image in zip(texts, images, strict=True)
    ]


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InputError("an element of 'text' is not UTF-8") from None


def result_tensor(pb: Any, results: Sequence[Result], shape: Sequence[int]) -> Any:
    """The output `result`: one JSON text a post, as `/v2` of `amlr-serve` gives it."""
    values = np.empty(len(results), np.object_)
    values[:] = [json_bytes(result.to_dict()) for result in results]
    return pb.Tensor("result", values.reshape(shape))


def response_parameters(results: Sequence[Result]) -> dict[str, str | int | bool]:
    """What a client or a proxy may want to know without parsing the results."""
    return {
        "tier": f"{results[0].provider}/{results[0].precision}" if results else "",
        "posts": len(results),
        "images_used": sum(result.image_used for result in results),
        "entities": sum(len(result.entities) for result in results),
        "warnings": sum(bool(result.warnings) for result in results),
        "errors": sum(result.error is not None for result in results),
    }


def refusal(pb: Any, message: str, code: Any) -> Any:
    """The answer to a request that cannot be served; others of its batch are not touched."""
    return pb.InferenceResponse(error=pb.TritonError(message, code))
