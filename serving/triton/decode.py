"""The ensemble's last model: scores of the graphs to results."""

import json
from dataclasses import replace
from typing import Any

from amlr.errors import InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.results import Result
from amlr.serving.triton.ensemble import Limits
from amlr.serving.triton.opening import HalfModel
from amlr.serving.triton.replay import Replay
from amlr.serving.triton.requests import read_posts, refusal, result_tensor

_OUTPUTS = ("unit_logits_bsc", "emissions_bty")


class TritonPythonModel(HalfModel):
    """What the python backend looks for."""

    def _begin(self, bundle: Bundle, limits: Limits) -> None:
        self._replay = Replay("fp32")
        self._engine = Engine(bundle, self._replay)

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
