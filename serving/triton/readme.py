"""`README.md` of a written repository."""

from collections.abc import Sequence

from amlr import __version__
from amlr.runtime.bundle import Bundle
from amlr.serving.triton.ensemble import EnsembleModel

_TEXT = """\
# {name} for Triton Inference Server

Written by amlr {version} from the bundle `{name}`, manifest sha256 `{digest}`.
The folder holds two model repositories. Serve one of them:

    tritonserver --model-repository={{this folder}}/models

## models/amlr

One model of the python backend around the lean engine. The interpreter that Triton's python backend
starts must have the package `amlr` {version} (`pip install amlr`; no PyTorch is needed).

| tensor | type | shape | |
|---|---|---|---|
| `text` | BYTES | [B, 1] | UTF-8 |
| `image` | BYTES | [B, 1] | the picture file; optional; empty means none |
| `result` | BYTES | [B, 1] | JSON, as `/v1/tag` and `/v2` of `amlr-serve` give it |

Responses carry the parameters `tier`, `posts`, `images_used`, `entities`, `warnings` and `errors`.
The request parameter `timeout` (microseconds) refuses a request that has waited longer.
Triton does not put a request with `image` and one without it into the same batch: where both kinds
come mixed, send an empty `image` instead of leaving it out.

What to change, in `models/amlr/config.pbtxt`:

* `instance_group`: each instance is a process of its own with its own picture cache. On a CPU, use
  as many instances as cores and set `threads` to 1, or one instance with `threads` `auto`.
* `parameters`: `provider`, `precision`, `threads`, `image_cache_mb`, `answer_cache`, `image`, as in
  `amlr.Engine.load`. `manifest_sha256` pins the bundle, which lies in `models/amlr/1/amlr.plan`.
* `dynamic_batching`: preferred sizes are those of the bundle's engines, or those at which a CPU
  reaches full speed.

The engine proves itself on the bundle's golden posts before Triton calls the model ready.

## ensemble

The same answers with the graphs run by Triton's own backends ({backends}), around two small Python
models. One request carries any number of posts up to 128, shape [B]; Triton batches nothing across
requests here, because a long text has several windows and posts may share a picture.

{models}

**Not executed.** The configurations are checked against Triton's message definition, their tensors
against the graphs, and the two Python models were run with the graphs in onnxruntime; the ensemble
itself has not run on a server with these backends. `models/` has.
"""


def readme(bundle: Bundle, models: Sequence[EnsembleModel]) -> str:
    """The text."""
    backends = {str(m.config.get("backend", "ensemble")) for m in models} - {"python", "ensemble"}
    return _TEXT.format(
        name=bundle.manifest.name,
        version=__version__,
        digest=bundle.manifest_sha256,
        backends=", ".join(sorted(backends)),
        models="\n".join(
            f"* `{m.config['name']}`: {m.config.get('backend', 'the ensemble')}" for m in models
        ),
    )
