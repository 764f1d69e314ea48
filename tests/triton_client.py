"""Triton's own clients over HTTP and gRPC, asked for tags."""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

PROTOCOLS = ("http", "grpc")


class TaggingClient:
    """One connection; not to be shared by threads."""

    def __init__(self, protocol: str, address: str) -> None:
        """Connect."""
        self._library: Any = import_module(f"tritonclient.{protocol}")
        self.client: Any = self._library.InferenceServerClient(address)

    def infer(
        self,
        texts: Sequence[str | bytes],
        images: Sequence[bytes | None] | None = None,
        **options: Any,
    ) -> Any:
        """One request; the client library's own answer.

        Args:
            texts: Of the posts.
            images: Picture files; a None is sent as an empty one. None leaves the input out.
            options: Further arguments of the client's `infer`.
        """
        raw = [text.encode() if isinstance(text, str) else text for text in texts]
        inputs = [self.tensor("text", raw)]
        if images is not None:
            inputs.append(self.tensor("image", [image or b"" for image in images]))
        return self.client.infer("amlr", inputs, **options)

    def tag(
        self, texts: Sequence[str | bytes], images: Sequence[bytes | None] | None = None
    ) -> list[dict[str, Any]]:
        """Answers as plain values."""
        return answers(self.infer(texts, images))

    def close(self) -> None:
        """Disconnect."""
        close: Callable[[], None] = self.client.close
        close()

    def tensor(self, name: str, values: Sequence[bytes]) -> Any:
        """An input of the model, shape (B, 1)."""
        shape = [len(values), 1]
        array = np.empty(len(values), np.object_)
        array[:] = values
        tensor = self._library.InferInput(name, shape, "BYTES")
        tensor.set_data_from_numpy(array.reshape(shape))
        return tensor


def answers(response: Any) -> list[dict[str, Any]]:
    """The output `result` as plain values."""
    return [json.loads(value) for value in response.as_numpy("result").reshape(-1)]
