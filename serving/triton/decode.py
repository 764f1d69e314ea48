"""The ensemble's last model: scores of the graphs to results."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from amlr.errors import AmlrError, InputError
from amlr.runtime.engine import Engine
from amlr.runtime.results import Result
from amlr.serving.triton.opening import open_half
from amlr.serving.triton.replay import Replay
from amlr.serving.triton.requests import read_posts, refusal, result_tensor

_OUTPUTS = ("unit_logits_bsc", "emissions_bty")


class TritonPythonModel:
    """What the python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle's tokenizer and decoder.

        Raises:
            TritonModelException: It cannot be read.
        """
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            bundle, _ = open_half(config, folder)
        except AmlrError as error:
            raise self._pb.TritonModelException(str(error)) from error
        self._replay = Replay("fp32")
        self._engine = Engine(bundle, self._replay)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Close the engine."""
        self._engine.close()

    def _respond(self, request: Any) -> Any:
        pb = self._pb
        try:
            # Without pictures: what they did is in the scores already.
            posts = read_posts(pb, request)
        except InputError as error:
            return refusal(pb, str(error), pb.TritonError.INVALID_ARG)
        self._replay.set(
            {name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in _OUTPUTS}
        )
        notes = pb.get_input_tensor_by_name(request, "pictures").as_numpy().tolist()
        results = [
            _with_picture(result, json.loads(note))
            for result, note in zip(self._engine.tag_batch(posts), notes, strict=True)
        ]
        return pb.InferenceResponse(output_tensors=[result_tensor(pb, results, (len(posts),))])


def _with_picture(result: Result, note: dict[str, Any]) -> Result:
    return replace(result, image_used=note["used"], warnings=tuple(note["warnings"]))
