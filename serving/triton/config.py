"""`config.pbtxt` of the model `amlr`, from the bundle's own numbers."""

from collections.abc import Mapping
from typing import Any

from amlr.runtime.batching import CPU_BATCHES
from amlr.runtime.engine_record import EngineRecord
from amlr.runtime.manifest import Manifest
from amlr.runtime.pipeline import CHUNK_POSTS
from amlr.serving.settings import BatchSettings, QueueSettings
from amlr.serving.triton.parameters import EngineParameters
from amlr.serving.triton.pbtxt import EnumValue, entries

MODEL = "amlr"
Config = dict[str, Any]
_STRING = EnumValue("TYPE_STRING")
_MICROSECONDS = 1_000_000


def _tensor(name: str, data_type: str, dims: list[int], *, optional: bool = False) -> Config:
    """One input or output."""
    value: Config = {"name": name, "data_type": EnumValue(data_type), "dims": dims}
    return value | {"optional": True} if optional else value


def batch_sizes(manifest: Manifest) -> list[int]:
    """Batches worth waiting for: the engines' own, else those at which a CPU is at full speed."""
    for values in manifest.engines:
        _, usual, high = EngineRecord.from_dict(values).graphs["text"].shapes[0]["input_ids"]
        return sorted({usual[0], high[0]})
    return [CPU_BATCHES.windows // 2, CPU_BATCHES.windows]


def model_config(
    manifest: Manifest,
    parameters: EngineParameters,
    warmup: Mapping[str, bool],
    instances: int = 1,
) -> Config:
    """The configuration, field by field as Triton's proto names them.

    Args:
        manifest: Of the bundle.
        parameters: For the engine.
        warmup: Samples by name of their file's stem: whether they have a picture.
        instances: Processes with an engine each.
    """
    queue = QueueSettings()
    sizes = batch_sizes(manifest)
    return {
        "name": MODEL,
        "backend": "python",
        "max_batch_size": CHUNK_POSTS,
        "input": [
            _tensor("text", "TYPE_STRING", [1]),
            _tensor("image", "TYPE_STRING", [1], optional=True),
        ],
        "output": [_tensor("result", "TYPE_STRING", [1])],
        "instance_group": [
            {"count": instances, "kind": EnumValue("KIND_GPU" if manifest.engines else "KIND_CPU")}
        ],
        "dynamic_batching": {
            "preferred_batch_size": sizes,
            "max_queue_delay_microseconds": round(BatchSettings().max_wait_s * _MICROSECONDS),
            "default_queue_policy": {
                "timeout_action": EnumValue("REJECT"),
                "default_timeout_microseconds": round(queue.deadline_s * _MICROSECONDS),
                "allow_timeout_override": True,
                "max_queue_size": queue.max_posts,
            },
        },
        "model_warmup": [
            _warmup(name, sizes[-1], has_image=has_image) for name, has_image in warmup.items()
        ],
        "parameters": entries(
            {name: {"string_value": value} for name, value in parameters.to_strings().items()}
        ),
    }


def _warmup(name: str, size: int, *, has_image: bool) -> Config:
    files = {"text": f"{name}.text"} | ({"image": f"{name}.image"} if has_image else {})
    return {
        "name": name,
        "batch_size": size,
        "inputs": entries(
            {
                key: {"data_type": _STRING, "dims": [1], "input_data_file": file}
                for key, file in files.items()
            }
        ),
    }
