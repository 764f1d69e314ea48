"""A double of `triton_python_backend_utils`, the module that Triton's python backend provides.

It holds what the models here use, with the real module's names and signatures; the real one is met
by the tests in `tests/triton_server`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format


class TritonModelException(Exception):  # noqa: N818  (Triton's own name)
    pass


class TritonError(Exception):
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)
    ALREADY_EXISTS, CANCELLED = 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: Any) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class InferenceRequest:
    def __init__(self, *, inputs: Sequence[Tensor], cancelled: bool = False) -> None:
        self._inputs, self._cancelled = {t.name(): t for t in inputs}, cancelled

    def is_cancelled(self) -> bool:
        return self._cancelled


class InferenceResponse:
    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Takes output_tensors, error and parameters."""
        self._outputs, self._error, self._parameters = output_tensors, error, parameters

    def output_tensors(self) -> Sequence[Tensor]:
        return self._outputs

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        return json.dumps(self._parameters)


class OldInferenceResponse(InferenceResponse):
    """As servers up to 2.51 have it: without parameters."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        """Takes output_tensors and error."""
        super().__init__(output_tensors, error)


class Logger:
    lines: list[str]

    def __init__(self) -> None:
        self.lines = []

    def log_info(self, line: str) -> None:
        self.lines.append(line)

    log_error = log_info


def backend_double(*, old: bool = False) -> ModuleType:
    """The module."""
    module: Any = ModuleType("triton_python_backend_utils")
    module.TritonModelException, module.TritonError = TritonModelException, TritonError
    module.Tensor, module.Logger = Tensor, Logger()
    module.InferenceResponse = OldInferenceResponse if old else InferenceResponse
    module.get_input_tensor_by_name = lambda request, name: request._inputs.get(name)
    return module  # type: ignore[no-any-return]


def parse_config(path: Path) -> Any:
    """A `config.pbtxt` as Triton's own message."""
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    return text_format.Parse(path.read_text(encoding="ascii"), ModelConfig())


def arguments(model: Path, **changes: str) -> dict[str, str]:
    """What Triton calls `initialize` with."""
    config = parse_config(model / "config.pbtxt")
    as_json = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return {
        "model_config": json.dumps(as_json),
        "model_repository": str(model),
        "model_version": "1",
        "model_name": config.name,
        "model_instance_name": f"{config.name}_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    } | changes


def bytes_tensor(name: str, values: Sequence[bytes]) -> Tensor:
    """A BYTES tensor of shape (B, 1)."""
    array = np.empty(len(values), np.object_)
    array[:] = values
    return Tensor(name, array.reshape(len(values), 1))


def request(
    texts: Sequence[str | bytes],
    images: Sequence[bytes] | None = None,
    *,
    cancelled: bool = False,
) -> InferenceRequest:
    """A request as a client of the model makes it."""
    raw = [text.encode() if isinstance(text, str) else text for text in texts]
    inputs = [bytes_tensor("text", raw)]
    if images is not None:
        inputs.append(bytes_tensor("image", images))
    return InferenceRequest(inputs=inputs, cancelled=cancelled)
