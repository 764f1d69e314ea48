"""The model `amlr` inside Triton's python backend: the lean engine behind dynamic batching.

All requests that Triton hands over together become one call of the engine. A request that cannot be
read is answered with an error of its own; a post that cannot be tagged says so in its result.
"""

import importlib
import json
import os
import traceback
from collections.abc import MutableMapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from amlr.errors import AmlrError, InputError
from amlr.runtime.engine import Engine
from amlr.runtime.results import Post, Result
from amlr.serving.encoding import json_bytes
from amlr.serving.triton.repository import EngineParameters, batch_sizes


class TritonPythonModel:
    """The class that the python backend looks for; one object per instance, in its own process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, golden check included, and run full batches of golden posts.

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
        size = max(batch_sizes(self._engine.manifest))
        for has_images in (False, True):
            posts = [
                Post(p.text, p.image if has_images else None) for p in self._engine.bundle.golden
            ]
            self._engine.tag_batch(list(islice(cycle(posts), size)))
        self._has_parameters = takes_parameters(self._pb)
        name = args.get("model_instance_name", "amlr")
        self._pb.Logger.log_info(f"{name}: {self._engine.provider}, {self._engine.precision}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in order."""
        codes = self._pb.TritonError
        responses: list[Any] = [None] * len(requests)
        batch: list[tuple[int, list[Post]]] = []
        for index, request in enumerate(requests):
            if request.is_cancelled():
                responses[index] = self._refusal("the client left", codes.CANCELLED)
                continue
            try:
                batch.append((index, self._read_posts(request)))
            except InputError as error:
                responses[index] = self._refusal(str(error), codes.INVALID_ARG)
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

    def _read_posts(self, request: Any) -> list[Post]:
        """Posts of one request, in row-major order; an empty picture is none.

        Raises:
            InputError: The tensors do not fit each other, or a text is not UTF-8.
        """
        text = self._pb.get_input_tensor_by_name(request, "text")
        if text is None:
            raise InputError("the input 'text' is missing")
        texts = text.as_numpy().reshape(-1).tolist()
        image = self._pb.get_input_tensor_by_name(request, "image")
        images = [b""] * len(texts) if image is None else image.as_numpy().reshape(-1).tolist()
        if len(images) != len(texts):
            raise InputError(f"'image' has {len(images)} elements and 'text' {len(texts)}")
        try:
            return [
                Post(text.decode(), bytes(image) or None)
                for text, image in zip(texts, images, strict=True)
            ]
        except UnicodeDecodeError:
            raise InputError("an element of 'text' is not UTF-8") from None

    def _response(self, posts: Sequence[Post], outcome: list[Result] | Exception) -> Any:
        """The output `result`: one JSON text per post, as `/v2` of `amlr-serve` gives it."""
        if isinstance(outcome, Exception):
            message = str(outcome) if isinstance(outcome, AmlrError) else "see the server's log"
            return self._refusal(f"the engine failed: {message}", self._pb.TritonError.INTERNAL)
        values = np.empty(len(outcome), np.object_)
        values[:] = [json_bytes(result.to_dict()) for result in outcome]
        tensor = self._pb.Tensor("result", values.reshape(len(posts), 1))
        options = {"parameters": response_parameters(outcome)} if self._has_parameters else {}
        return self._pb.InferenceResponse(output_tensors=[tensor], **options)

    def _refusal(self, message: str, code: Any) -> Any:
        """The answer to a request that cannot be served; others of its batch are not touched."""
        return self._pb.InferenceResponse(error=self._pb.TritonError(message, code))


def response_parameters(results: Sequence[Result]) -> dict[str, str | int | bool]:
    """Counts for clients and proxies that do not parse the results."""
    return {
        "tier": f"{results[0].provider}/{results[0].precision}" if results else "",
        "posts": len(results),
        "images_used": sum(result.image_used for result in results),
        "certified": sum(result.certified is True for result in results),
        "entities": sum(len(result.entities) for result in results),
        "warnings": sum(bool(result.warnings) for result in results),
        "errors": sum(result.error is not None for result in results),
    }


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
