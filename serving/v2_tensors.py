"""Tensors of the Open Inference Protocol: JSON, and the binary extension that Triton clients use.

A BYTES tensor on the wire is, for each element, its length (4 bytes, little endian) and its bytes.
In JSON an element of `image` is base64, because JSON holds text only.
"""

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amlr.errors import InputError
from amlr.serving.encoding import decode_base64, encode_bytes
from amlr.serving.json_reading import load_json
from amlr.serving.problems import ApiError

_MAX_ELEMENTS = 100_000


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
    if header_length is not None and not 0 <= header_length <= len(body):
        raise _bad("Inference-Header-Content-Length exceeds the body")
    header = load_json(body if header_length is None else body[:header_length], "the request")
    binary = b"" if header_length is None else body[header_length:]
    if not isinstance(header, dict) or not isinstance(header.get("inputs"), list):
        raise _bad("expected an object with a list 'inputs'")
    tensors: dict[str, tuple[tuple[int, ...], list[bytes | str]]] = {}
    for tensor in header["inputs"]:
        name, shape, data, binary = _tensor(tensor, binary)
        if name in tensors:
            raise _bad(f"input '{name}' is given twice")
        tensors[name] = (shape, data)
    if binary:
        raise _bad(f"{len(binary)} bytes of binary data belong to no input")
    if "text" not in tensors:
        raise _bad("the input 'text' is missing")
    shape, texts = tensors["text"]
    images: Sequence[bytes | str] = tensors.get("image", (shape, [b""] * len(texts)))[1]
    if len(images) != len(texts):
        raise _bad(f"'image' has {len(images)} elements and 'text' {len(texts)}")
    parameters = _object(header, "parameters")
    identifier = header.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise _bad("'id' must be a string")
    return InferRequest(
        id=identifier,
        shape=shape,
        texts=tuple(map(_text, texts)),
        images=tuple(_image(image) or None for image in images),
        deadline_s=_timeout(parameters),
        binary_output=_wants_binary(header, parameters),
    )


def _tensor(tensor: Any, binary: bytes) -> tuple[str, tuple[int, ...], list[bytes | str], bytes]:
    """Name, shape and elements of an input, and the binary data left for the next ones."""
    if not isinstance(tensor, dict):
        raise _bad("every input must be an object")
    name, kind = tensor.get("name"), tensor.get("datatype")
    if name not in ("text", "image"):
        raise _bad("inputs are 'text' and 'image'")
    if kind != "BYTES":
        raise _bad(f"input '{name}' must be of datatype BYTES")
    shape = _shape(tensor.get("shape"))
    count = math.prod(shape)
    size = _object(tensor, "parameters").get("binary_data_size")
    if size is None:
        data: list[bytes | str] = [*_flat(tensor.get("data"))]
    else:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary):
            raise _bad(f"binary_data_size of '{name}' exceeds the body")
        data, binary = [*_split(binary[:size], count)], binary[size:]
    if len(data) != count:
        raise _bad(f"input '{name}' has {len(data)} elements, its shape says {count}")
    return str(name), shape, data, binary


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 4:
        raise _bad("'shape' must be a list of one to four sizes")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape):
        raise _bad("'shape' must hold whole numbers above 0")
    if math.prod(shape) > _MAX_ELEMENTS:
        raise _bad(f"at most {_MAX_ELEMENTS} elements fit one request")
    return tuple(shape)


def _flat(data: Any) -> list[str]:
    if not isinstance(data, list):
        raise _bad("'data' must be a list")
    flat: list[str] = []
    for item in data:
        if isinstance(item, str):
            flat.append(item)
        elif isinstance(item, list) and all(isinstance(value, str) for value in item):
            flat.extend(item)
        else:
            raise _bad("'data' must hold strings, in one list or in rows")
    return flat


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


def _object(values: dict[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad(f"'{name}' must be an object")
    return value


def _timeout(parameters: dict[str, Any]) -> float | None:
    value = parameters.get("timeout")
    if value is None or value == 0:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 600_000_000:
        raise _bad("'timeout' must be microseconds in 0..600000000")
    return value / 1e6


def _wants_binary(header: dict[str, Any], parameters: dict[str, Any]) -> bool:
    outputs = header.get("outputs")
    if not outputs:
        return parameters.get("binary_data_output") is True
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise _bad("the only output is 'result'")
    if outputs[0].get("name") != "result":
        raise _bad("the only output is 'result'")
    return _object(outputs[0], "parameters").get("binary_data") is True


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
    data = encode_bytes(results)
    output["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(answer).encode()
    return head + data, len(head)


def _bad(message: str) -> ApiError:
    return ApiError(400, "request_invalid", message)
