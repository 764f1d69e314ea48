"""The model `amlr` inside Triton's python backend: the lean engine behind dynamic batching.

All requests that Triton hands over together become one call of the engine. A request that cannot be
read is answered with an error of its own; a post that cannot be tagged says so in its result.
"""

import importlib
import json
import os
import traceback
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from amlr.errors import AmlrError, InputError
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post, Result
from amlr.serving.triton.parameters import EngineParameters
from amlr.serving.triton.requests import (
    read_posts,
    refusal,
    response_parameters,
    result_tensor,
)


class TritonPythonModel:
    """What the python backend looks for in `model.py`; one object an instance, in its process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, golden check included.

        Raises:
            TritonModelException: It cannot be loaded; Triton reports the model as unavailable.
        """
        # This module exists only where Triton runs Python.
        self._pb: Any = importlib.import_module("triton_python_backend_utils")
        choose_device(args, os.environ)
        folder = Path(args["model_repository"]) / args["model_version"]
        try:
            parameters = EngineParameters.from_config(json.loads(args["model_config"]))
            self._engine: Engine = parameters.load(folder)
        except AmlrError as error:
            raise self._pb.TritonModelException(str(error)) from error
        self._has_parameters = takes_parameters(self._pb)
        name = args.get("model_instance_name", "amlr")
        self._pb.Logger.log_info(f"{name}: {self._engine.provider}, {self._engine.precision}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        responses: list[Any] = [None] * len(requests)
        batch: list[tuple[int, list[Post]]] = []
        for index, request in enumerate(requests):
            if request.is_cancelled():
                codes = self._pb.TritonError
                responses[index] = refusal(self._pb, "the client left", codes.CANCELLED)
                continue
            try:
                batch.append((index, read_posts(self._pb, request)))
            except InputError as error:
                codes = self._pb.TritonError
                responses[index] = refusal(self._pb, str(error), codes.INVALID_ARG)
        outcomes = self._tag([posts for _, posts in batch])
        for (index, posts), outcome in zip(batch, outcomes, strict=True):
            responses[index] = self._response(posts, outcome)
        return responses

    def finalize(self) -> None:
        """Close the engine: the model is being unloaded."""
        self._engine.close()

    def _tag(self, groups: Sequence[list[Post]]) -> list[list[Result] | Exception]:
        """Tag all requests in one call; if that breaks, each alone, so that one fails alone."""
        try:
            results = iter(self._engine.tag_batch([post for posts in groups for post in posts]))
            return [[next(results) for _ in posts] for posts in groups]
        # Bad posts do not raise: this is the engine library, which may fail in ways of its own.
        except Exception as error:
            self._pb.Logger.log_error("".join(traceback.format_exception(error)))
            if len(groups) == 1:
                return [error]
        return [outcome for posts in groups for outcome in self._tag([posts])]

    def _response(self, posts: Sequence[Post], outcome: list[Result] | Exception) -> Any:
        if isinstance(outcome, Exception):
            message = str(outcome) if isinstance(outcome, AmlrError) else "see the server's log"
            return refusal(self._pb, f"the engine failed: {message}", self._pb.TritonError.INTERNAL)
        tensor = result_tensor(self._pb, outcome, (len(posts), 1))
        if self._has_parameters:
            return self._pb.InferenceResponse(
                output_tensors=[tensor], parameters=response_parameters(outcome)
            )
        return self._pb.InferenceResponse(output_tensors=[tensor])


def takes_parameters(pb: Any) -> bool:
    """Whether this server's responses may carry parameters; older ones refuse the argument."""
    return "parameters" in (pb.InferenceResponse.__init__.__doc__ or "")


def choose_device(args: dict[str, str], environ: MutableMapping[str, str]) -> None:
    """Let an instance see only the GPU that Triton gave it, which the engine then finds as its own.

    Every instance has a process of its own, and nothing of CUDA has been touched in it yet.
    """
    if args.get("model_instance_kind") != "GPU":
        return
    number = args["model_instance_device_id"]
    visible = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    environ["CUDA_VISIBLE_DEVICES"] = visible[int(number)] if visible else number
