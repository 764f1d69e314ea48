"""`config.pbtxt` of the model `amlr`, from the bundle's own numbers."""

from collections.abc import Mapping
from typing import Any

from amlr.runtime.batching import CPU_BATCHES
from amlr.runtime.engine_record import EngineRecord
from amlr.runtime.manifest import Manifest
from amlr.runtime.pipeline import CHUNK_POSTS
from amlr.serving.settings import BatchSettings, QueueSettings
from amlr.serving.triton.parameters import EngineParameters

MODEL = "amlr"
_MICROSECONDS = 1_000_000
# Field by field as Triton's proto names them; `%` stands before what a bundle decides.
_CONFIG = """\
name: "amlr"
backend: "python"
max_batch_size: %(max_batch)d
input { name: "text" data_type: TYPE_STRING dims: 1 }
input { name: "image" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "result" data_type: TYPE_STRING dims: 1 }
instance_group { count: %(instances)d kind: %(kind)s }
dynamic_batching {
  preferred_batch_size: [ %(sizes)s ]
  max_queue_delay_microseconds: %(delay)d
  default_queue_policy {
    timeout_action: REJECT
    default_timeout_microseconds: %(timeout)d
    allow_timeout_override: true
    max_queue_size: %(max_queue)d
  }
}
"""
_WARMUP = """\
model_warmup {
  name: "%s"
  batch_size: %d
%s}
"""
_WARMUP_INPUT = """\
  inputs {
    key: "%s"
    value { data_type: TYPE_STRING dims: 1 input_data_file: "%s" }
  }
"""


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
) -> str:
    """The configuration.

    Args:
        manifest: Of the bundle.
        parameters: For the engine.
        warmup: Samples by name of their file's stem: whether they have a picture.
        instances: Processes with an engine each.
    """
    queue, sizes = QueueSettings(), batch_sizes(manifest)
    values: dict[str, Any] = {
        "max_batch": CHUNK_POSTS,
        "instances": instances,
        "kind": "KIND_GPU" if manifest.engines else "KIND_CPU",
        "sizes": ", ".join(map(str, sizes)),
        "delay": round(BatchSettings().max_wait_s * _MICROSECONDS),
        "timeout": round(queue.deadline_s * _MICROSECONDS),
        "max_queue": queue.max_posts,
    }
    parts = [_CONFIG % values]
    for name, has_image in warmup.items():
        kinds = ("text", "image") if has_image else ("text",)
        inputs = "".join(_WARMUP_INPUT % (kind, f"{name}.{kind}") for kind in kinds)
        parts.append(_WARMUP % (name, sizes[-1], inputs))
    for name, value in parameters.to_strings().items():
        text = quoted(value)
        parts.append(f'parameters {{ key: "{name}" value {{ string_value: {text} }} }}\n')
    return "".join(parts)


def quoted(text: str) -> str:
    """A string of protocol-buffer text format: what is no plain ASCII in octal."""
    characters = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\' else f"\\{byte:03o}"
        for byte in text.encode()
    )
    return f'"{"".join(characters)}"'
