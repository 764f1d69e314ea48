"""The ensemble: Triton's own backends run the graphs, Python prepares and decodes.

    text, image -> amlr_prepare -> amlr_text -+
                              `--> amlr_image +-> amlr_fusion -> amlr_decode -> result

One request carries a batch of posts. A post may need several windows of text and posts may share a
picture, so tensors inside have other first dimensions than the request, and no model here has a
batch dimension that Triton could know of.
"""

from dataclasses import dataclass, field
from typing import Any

from amlr.runtime.bundle import Bundle
from amlr.runtime.engine_record import GRAPHS, EngineRecord
from amlr.runtime.manifest import DECODER, GOLDEN, MANIFEST, TOKENIZER, Manifest
from amlr.runtime.pipeline import CHUNK_POSTS
from amlr.serving.triton.config import Config, string_parameters, tensor
from amlr.serving.triton.parameters import BUNDLE
from amlr.serving.triton.pbtxt import EnumValue, entries

ENSEMBLE_MODEL, PREPARE, DECODE = "amlr_ensemble", "amlr_prepare", "amlr_decode"
VARIANT = "fp32"
Tensors = list[Config]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleModel:
    """One model of the ensemble's repository.

    Attributes:
        config: Its configuration.
        files: Names in the version's folder and the bundle's files they are copies of.
        module: Where its class is, for models of the python backend.
    """

    config: Config
    files: dict[str, str] = field(default_factory=dict)
    module: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may hold, because an engine was built for no more.

    Attributes:
        windows: Windows of text.
        pictures: Different pictures.
        steps: Steps to which texts are padded at least.
    """

    windows: int = CHUNK_POSTS
    pictures: int = CHUNK_POSTS
    steps: int = 1

    def to_strings(self) -> dict[str, str]:
        """As parameters of `config.pbtxt`."""
        return {name: str(getattr(self, name)) for name in self.__dataclass_fields__}


def graph_tensors(manifest: Manifest) -> dict[str, tuple[Tensors, Tensors]]:
    """Inputs and outputs of the graphs that the ensemble runs, -1 where a size may change."""
    size, width, regions = manifest.image.size, manifest.width, manifest.regions
    ids = ["input_ids", "attention_mask", *(["shape_ids"] if manifest.shape_embedding else [])]
    hidden = tensor("hidden_btd", "TYPE_FP32", [-1, -1, width])
    return {
        "text": ([tensor(name, "TYPE_INT64", [-1, -1]) for name in ids], [hidden]),
        "image": (
            [tensor("pixel_values", "TYPE_FP32", [-1, 3, size, size])],
            [tensor("regions_bpd", "TYPE_FP32", [-1, regions, width])],
        ),
        "fusion": (
            [
                hidden,
                tensor("unit_index_bs", "TYPE_INT64", [-1, -1]),
                tensor("pool_npd", "TYPE_FP32", [-1, regions, width]),
                tensor("slot_b", "TYPE_INT64", [-1]),
            ],
            [
                tensor("unit_logits_bsc", "TYPE_FP32", [-1, -1, len(manifest.classes)]),
                tensor("emissions_bty", "TYPE_FP32", [-1, -1, len(manifest.tags)]),
            ],
        ),
    }


def ensemble_models(bundle: Bundle) -> list[EnsembleModel]:
    """The ensemble and everything it is made of."""
    manifest = bundle.manifest
    graphs = graph_tensors(manifest)
    record = tensorrt_record(manifest)
    posts = [
        tensor("text", "TYPE_STRING", [-1]),
        tensor("image", "TYPE_STRING", [-1], optional=True),
    ]
    result = [tensor("result", "TYPE_STRING", [-1])]
    (text_in, _), (image_in, _), (fusion_in, fusion_out) = (graphs[name] for name in GRAPHS)
    prepared = [*text_in, *image_in, *fusion_in[1:2], *fusion_in[3:]]
    pictures = tensor("pictures", "TYPE_STRING", [-1])
    models = [
        EnsembleModel(config=_ensemble(posts, result, [*prepared, pictures], graphs)),
        _python(bundle, PREPARE, posts, [*prepared, pictures], _limits(manifest, record)),
        _python(bundle, DECODE, [posts[0], pictures, *fusion_out], result, Limits()),
    ]
    return models + [_graph(bundle, name, *graphs[name], record) for name in GRAPHS]


def tensorrt_record(manifest: Manifest) -> EngineRecord | None:
    """Engines that Triton's tensorrt backend could load; TensorRT-RTX has none there."""
    for values in manifest.engines:
        record = EngineRecord.from_dict(values)
        if record.library == "tensorrt" and set(GRAPHS) <= set(record.graphs):
            return record
    return None


def _limits(manifest: Manifest, record: EngineRecord | None) -> Limits:
    # A unit spans up to K steps, so the fusion graph slices windows of at least that many.
    if record is None:
        return Limits(steps=manifest.scales)
    low, _, high = record.graphs["text"].shapes[0]["input_ids"]
    pictures = record.graphs["image"].shapes[0]["pixel_values"][2][0]
    return Limits(windows=high[0], pictures=pictures, steps=max(manifest.scales, low[1]))


def _model(name: str, inputs: Tensors, outputs: Tensors, **backend: Any) -> Config:
    return {"name": name, **backend, "max_batch_size": 0, "input": inputs, "output": outputs}


def _python(
    bundle: Bundle, name: str, inputs: Tensors, outputs: Tensors, limits: Limits
) -> EnsembleModel:
    config = _model(name, inputs, outputs, backend="python")
    config["instance_group"] = [{"count": 1, "kind": EnumValue("KIND_CPU")}]
    config["parameters"] = string_parameters(
        {"manifest_sha256": bundle.manifest_sha256, **limits.to_strings()}
    )
    names = (MANIFEST, TOKENIZER, DECODER, GOLDEN)
    return EnsembleModel(
        config=config,
        files={f"{BUNDLE}/{file}": file for file in names},
        module=f"amlr.serving.triton.{name.removeprefix('amlr_')}",
    )


def _graph(
    bundle: Bundle, graph: str, inputs: Tensors, outputs: Tensors, record: EngineRecord | None
) -> EnsembleModel:
    kind = "KIND_CPU" if record is None else "KIND_GPU"
    backend = "onnxruntime" if record is None else "tensorrt"
    config = _model(f"amlr_{graph}", inputs, outputs, backend=backend)
    config["instance_group"] = [{"count": 1, "kind": EnumValue(kind)}]
    if record is not None:
        return EnsembleModel(config=config, files={"model.plan": record.graphs[graph].file})
    own = bundle.manifest.variants[VARIANT].graphs[graph]
    beside = [n for n in bundle.files_of([own]) if not n.endswith(".onnx")]
    # Weights keep their name: the graph refers to them by it.
    return EnsembleModel(
        config=config, files={"model.onnx": own} | {n.rpartition("/")[2]: n for n in beside}
    )


def _ensemble(
    inputs: Tensors,
    outputs: Tensors,
    prepared: Tensors,
    graphs: dict[str, tuple[Tensors, Tensors]],
) -> Config:
    """Every tensor keeps one name throughout, but the pool, which is the image graph's output."""
    steps = [
        _step(PREPARE, _same(inputs), _same(prepared)),
        *(
            _step(f"amlr_{name}", _same(graphs[name][0]), _same(graphs[name][1]))
            for name in ("text", "image")
        ),
        _step(
            "amlr_fusion",
            _same(graphs["fusion"][0]) | {"pool_npd": "regions_bpd"},
            _same(graphs["fusion"][1]),
        ),
        _step(
            DECODE,
            _same([inputs[0], prepared[-1], *graphs["fusion"][1]]),
            _same(outputs),
        ),
    ]
    config = _model(ENSEMBLE_MODEL, inputs, outputs, platform="ensemble")
    return config | {"ensemble_scheduling": {"step": steps}}


def _same(tensors: Tensors) -> dict[str, str]:
    return {str(value["name"]): str(value["name"]) for value in tensors}


def _step(model: str, inputs: dict[str, str], outputs: dict[str, str]) -> Config:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": entries(inputs),
        "output_map": entries(outputs),
    }
