"""Tensors of the Open Inference Protocol: JSON, and the binary extension that Triton clients use.

A BYTES tensor on the wire is, for each element, its length (4 bytes, little endian) and its bytes.
In JSON an element of `image` is base64, because JSON holds text only.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from amlr.errors import InputError
from amlr.serving.json_reading import load_json
from amlr.serving.parsing import decode_base64, first_problem
from amlr.serving.problems import ApiError

_MAX_ELEMENTS = 100_000


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class _Parameters(_Strict):
    """Those of a request, an input or an output that mean something here."""

    binary_data_size: int | None = Field(default=None, ge=0)
    binary_data: bool = False
    binary_data_output: bool = False
    timeout: int | None = Field(default=None, ge=0, le=600_000_000)


class _Input(_Strict):
    name: Literal["text", "image"]
    datatype: Literal["BYTES"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=4)
    data: list[str | list[str]] = []
    parameters: _Parameters | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)


class _Output(_Strict):
    name: Literal["result"]
    parameters: _Parameters | None = None


class _Infer(_Strict):
    id: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] | None = Field(default=None, max_length=1)
    parameters: _Parameters | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """A parsed request.

    Attributes:
        id: The client's id, or None.
        shape: Shape of `text`, which the output repeats.
        texts: Texts in row-major order.
        images: Picture files, None where there is none.
        deadline_s: From the parameter `timeout` (microseconds), or None.
        binary_output: Whether the output is sent in binary form.
    """

    id: str | None
    shape: tuple[int, ...]
    texts: tuple[str, ...]
    images: tuple[bytes | None, ...]
    deadline_s: float | None
    binary_output: bool


def parse_infer(body: bytes, header_length: int | None) -> InferRequest:
    """Parse an infer request.

    Args:
        body: The whole body.
        header_length: Length of the JSON part where binary data follows, else None.

    Raises:
        ApiError: The request cannot be used.
    """
    if header_length is None:
        header_length = len(body)
    if header_length > len(body):
        raise _bad("Inference-Header-Content-Length exceeds the body")
    values, binary = load_json(body[:header_length], "the request"), body[header_length:]
    try:
        request = _Infer.model_validate(values)
    except ValidationError as error:
        raise _bad(first_problem(error)) from None
    tensors: dict[str, tuple[_Input, Sequence[bytes | str]]] = {}
    for tensor in request.inputs:
        elements, binary = _elements(tensor, binary)
        if tensor.name in tensors:
            raise _bad(f"input '{tensor.name}' is given twice")
        tensors[tensor.name] = tensor, elements
    if binary:
        raise _bad(f"{len(binary)} bytes of binary data belong to no input")
    if "text" not in tensors:
        raise _bad("the input 'text' is missing")
    tensor, texts = tensors["text"]
    _, images = tensors.get("image", (None, [b""] * len(texts)))
    if len(images) != len(texts):
        raise _bad(f"'image' has {len(images)} elements and 'text' {len(texts)}")
    parameters = request.parameters or _Parameters()
    binary_output = parameters.binary_data_output
    if request.outputs:
        binary_output = (request.outputs[0].parameters or _Parameters()).binary_data
    return InferRequest(
        id=request.id,
        shape=tuple(tensor.shape),
        texts=tuple(map(_text, texts)),
        images=tuple(_image(image) or None for image in images),
        deadline_s=parameters.timeout / 1e6 if parameters.timeout else None,
        binary_output=binary_output,
    )


def _elements(tensor: _Input, binary: bytes) -> tuple[Sequence[bytes | str], bytes]:
    """Elements of an input, and the binary data left for the next ones."""
    if tensor.count > _MAX_ELEMENTS:
        raise _bad(f"at most {_MAX_ELEMENTS} elements fit one request")
    size = (tensor.parameters or _Parameters()).binary_data_size
    elements: list[bytes | str] = []
    if size is None:
        for row in tensor.data:
            elements += [row] if isinstance(row, str) else row
    elif size > len(binary):
        raise _bad(f"binary_data_size of '{tensor.name}' exceeds the body")
    else:
        elements += _split(binary[:size], tensor.count)
        binary = binary[size:]
    if len(elements) != tensor.count:
        raise _bad(
            f"input '{tensor.name}' has {len(elements)} elements, its shape says {tensor.count}"
        )
    return elements, binary


def _split(data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    position = 0
    while position < len(data):
        if len(elements) == count:
            raise _bad(f"binary data holds more elements than the shape's {count}")
        if position + 4 > len(data):
            raise _bad("binary data ends within a length")
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + size > len(data):
            raise _bad("binary data ends within an element")
        elements.append(data[position : position + size])
        position += size
    return elements


def _text(value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise _bad("an element of 'text' is not UTF-8") from None


def _image(value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return decode_base64(value)
    except InputError:
        raise _bad("an element of 'image' is not base64, which JSON data must be") from None


def encode_output(
    request: InferRequest, model: str, version: str, results: Sequence[bytes]
) -> tuple[bytes, int | None]:
    """The answer's body, and the length of its JSON part where binary data follows."""
    output: dict[str, Any] = {"name": "result", "datatype": "BYTES", "shape": list(request.shape)}
    answer: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": [output]}
    if request.id is not None:
        answer["id"] = request.id
    if not request.binary_output:
        output["data"] = [result.decode() for result in results]
        return json.dumps(answer).encode(), None
    data = b"".join(struct.pack("<I", len(result)) + result for result in results)
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(answer).encode()
    return head + data, len(head)


def _bad(message: str) -> ApiError:
    return ApiError(400, "request_invalid", message)
