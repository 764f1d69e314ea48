"""The ensemble's first model: texts and pictures to the inputs of the graphs."""

from typing import Any

import numpy as np

from amlr.errors import InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.pipeline import CHUNK_POSTS, Pipeline
from amlr.runtime.results import Post
from amlr.serving.encoding import json_bytes
from amlr.serving.triton.ensemble import Limits
from amlr.serving.triton.opening import HalfModel
from amlr.serving.triton.replay import Arrays, Recorder
from amlr.serving.triton.requests import read_posts, refusal


class TritonPythonModel(HalfModel):
    """What the python backend looks for."""

    def _begin(self, bundle: Bundle, limits: Limits) -> None:
        self._limits = limits
        self._recorder = Recorder(bundle.manifest, "fp32")
        self._pipeline = Pipeline(bundle, self._recorder)

    def finalize(self) -> None:
        """Free the cache."""
        self._pipeline.close()

    def _respond(self, request: Any) -> Any:
        try:
            arrays = self._prepare(read_posts(self._pb, request))
        except InputError as error:
            return refusal(self._pb, str(error), self._pb.TritonError.INVALID_ARG)
        tensors = [self._pb.Tensor(name, array) for name, array in arrays.items()]
        return self._pb.InferenceResponse(output_tensors=tensors)

    def _prepare(self, posts: list[Post]) -> Arrays:
        if len(posts) > CHUNK_POSTS:
            raise InputError(f"at most {CHUNK_POSTS} posts fit one request, got {len(posts)}")
        scored = list(self._pipeline.score(posts))
        arrays = self._recorder.take(min_steps=self._limits.steps)
        for name, found, most in (
            ("windows of text", len(arrays["slot_b"]), self._limits.windows),
            ("pictures", len(arrays["pixel_values"]), self._limits.pictures),
        ):
            if found > most:
                raise InputError(
                    f"{found} {name}, at most {most} fit one request; send fewer posts"
                )
        pictures = np.empty(len(posts), np.object_)
        pictures[:] = [
            json_bytes({"used": post.image_used, "warnings": list(post.warnings)})
            for post in scored
        ]
        return arrays | {"pictures": pictures}
