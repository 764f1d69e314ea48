"""The fp16 variant for onnxruntime's CUDA provider: fused graphs, checked, judged, written."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from amlr.errors import ExportError
from amlr.export.fused.encoders import (
    TextEncoder,
    VisionTransformer,
    read_text,
    read_vision,
    write_text,
    write_vision,
)
from amlr.export.fused.fusion import Fusion, read_fusion, write_fusion
from amlr.export.fused.reader import Reader
from amlr.export.fused.standard import StandardWriter
from amlr.export.fused.writer import BATCH, SLOTS, STEPS, UNITS, Arithmetic, Writer
from amlr.export.options import FP16_CUDA
from amlr.export.precision.emulate import emulate
from amlr.export.precision.graph_tools import session_runner
from amlr.export.precision.half import to_half
from amlr.export.precision.judge import GRAPHS, GraphProvider, PostJudge
from amlr.export.precision.variant import fp32_models, half_tolerance, half_variant
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.results import Post
from amlr.runtime.units import unit_count

PROVIDER = "onnxruntime-cuda"
# Text and fusion as one graph: hidden states then never leave float16, nor the device.
MERGED = "text_fusion"
# Twins add in another order than the exported graphs, and differ in nothing else.
TWIN_TOLERANCE = 1e-4
# A text encoder that is not recognised does not say how many steps it takes.
_STEPS_MULTIPLE = 64
# Names of the exported graphs' dimensions, and of the same in fused ones.
_DIMENSIONS = {"B": BATCH, "T": STEPS, "S": UNITS, "N": SLOTS}
Models = dict[str, onnx.ModelProto]
Feed = dict[str, Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """What a bundle's graphs are made of; None for one that is not recognised.

    Attributes:
        plain: The float32 graphs themselves.
        text: Graph `text`.
        vision: Graph `image`.
        fusion: Graph `fusion`.
        most_steps: Longest window that the graphs take.
    """

    plain: Models
    text: TextEncoder | None
    vision: VisionTransformer | None
    fusion: Fusion | None
    most_steps: int


def read_parts(bundle: Bundle) -> Parts:
    """Recognise the layers of a bundle's float32 graphs; needs no checkpoint. See `recognise`."""
    most = -(-bundle.manifest.text.max_tokens // _STEPS_MULTIPLE) * _STEPS_MULTIPLE
    return recognise(fp32_models(bundle), most)


def recognise(plain: Models, most_steps: int) -> Parts:
    """Recognise the layers of float32 graphs; logs those that will be converted node by node.

    Args:
        plain: Graphs with their weights, of `text`, `image` and `fusion`.
        most_steps: Longest window, where the text encoder is not recognised.
    """

    def read(name: str, function: Callable[[Reader], Any]) -> Any:
        if name not in plain:
            return None
        try:
            return function(Reader(name, plain[name]))
        except ExportError as error:
            log.info(f"  {error}; it is converted node by node")
            return None

    text = read("text", read_text)
    return Parts(
        plain=plain, text=text, vision=read("image", read_vision),
        fusion=read("fusion", read_fusion),
        most_steps=most_steps if text is None else len(text.positions),
    )  # fmt: skip


def build(parts: Parts, arithmetic: Arithmetic, names: Sequence[str] = (*GRAPHS, MERGED)) -> Models:
    """Write graphs in one arithmetic.

    Args:
        parts: What to write.
        arithmetic: `EMULATED` judges what `HALF` computes.
        names: Graphs wanted.

    Returns:
        Graphs by name, without `text_fusion` where one of its halves is not recognised.

    Raises:
        ExportError: A weight leaves the float16 range.
    """
    made: Models = {}
    store: dict[str, TensorProto] = {}
    for name in names:
        out = Writer(name, arithmetic, store=store)
        if _write(out, parts):
            made[name] = out.model()
        elif name in GRAPHS:
            made[name] = _converted(name, parts.plain[name], arithmetic)
    return made


def emulated(parts: Parts) -> Models:
    """`text`, `image` and `fusion` in float32 that rounds wherever the variant's graphs do."""
    return build(parts, Arithmetic.EMULATED, GRAPHS)


def _write(out: Writer, parts: Parts) -> bool:
    """Write the graph of the writer's name from recognised parts, if they are."""
    text, vision, fusion = parts.text, parts.vision, parts.fusion
    if out.name == "text" and text is not None:
        out.output(write_text(out, text), "hidden_btd", [BATCH, STEPS, text.width])
    elif out.name == "image" and vision is not None:
        shape = [BATCH, vision.start.shape[0], vision.width]
        out.output(write_vision(out, vision), "regions_bpd", shape)
    elif out.name == "fusion" and fusion is not None:
        hidden = out.input("hidden_btd", [BATCH, STEPS, fusion.width], TensorProto.FLOAT)
        write_fusion(out, fusion, out.enter(hidden), parts.most_steps)
    elif out.name == MERGED and text is not None and fusion is not None:
        write_fusion(out, fusion, write_text(out, text), parts.most_steps)
    else:
        return False
    return True


def _converted(name: str, plain: onnx.ModelProto, arithmetic: Arithmetic) -> onnx.ModelProto:
    """A graph that is not recognised, node by node."""
    if arithmetic is Arithmetic.FLOAT:
        return plain
    half = to_half(name, plain).model
    if arithmetic is Arithmetic.EMULATED:
        return emulate(half)
    for info in (*half.graph.input, *half.graph.output):
        for dimension in info.type.tensor_type.shape.dim:
            if dimension.dim_param in _DIMENSIONS:
                dimension.dim_param = _DIMENSIONS[dimension.dim_param]
    return half


def merge_products(plain: Models) -> Models:
    """Encoders as TensorRT gets them: one product for Q, K and V, the scale on Q before the next.

    A CPU is slower on such graphs. `fusion` has one query and two maps of other tensors, so there
    is nothing to merge.

    Args:
        plain: Float32 `text` and `image`, and any others; not changed.

    Returns:
        The two of them that are recognised, with the same inputs and outputs.
    """
    parts = recognise({name: plain[name] for name in ("text", "image")}, most_steps=0)
    merged: Models = {}
    for name, old in parts.plain.items():
        out = StandardWriter(name, Arithmetic.FLOAT)
        if not _write(out, parts):
            continue
        merged[name] = out.model()
        # Profiles know the dimensions by the exported graphs' names.
        for side in ("input", "output"):
            ends = getattr(merged[name].graph, side)
            del ends[:]
            ends.extend(getattr(old.graph, side))
    return merged


def check_twins(bundle: Bundle, plain: Models, twins: Models) -> dict[str, float]:
    """Run float32 twins beside the graphs that they were made from, on random posts.

    Returns:
        Largest difference by graph.

    Raises:
        ExportError: It is more than `TWIN_TOLERANCE` of the largest value.
    """
    feeds = _random_feeds(bundle)
    if "fusion" in twins:
        feeds["fusion"]["hidden_btd"] = session_runner(plain["text"])(feeds["text"])["hidden_btd"]
    errors: dict[str, float] = {}
    for name, twin in twins.items():
        if twin is plain[name]:
            continue
        expected, actual = (session_runner(model)(feeds[name]) for model in (plain[name], twin))
        if name == "text":
            # Steps past a post's end hold numbers without meaning.
            real = feeds["text"]["attention_mask"] == 1
            expected, actual = ({n: v[real] for n, v in o.items()} for o in (expected, actual))
        errors[name] = max(float(np.abs(expected[n] - actual[n]).max()) for n in expected)
        largest = max(1.0, *(float(np.abs(value).max()) for value in expected.values()))
        if not errors[name] <= TWIN_TOLERANCE * largest:
            raise ExportError(
                f"graph {name!r}: its fused twin differs by {errors[name]:.2g}, expected at most "
                f"{TWIN_TOLERANCE * largest:.2g}; export without this precision"
            )
    return errors


def _random_feeds(bundle: Bundle) -> dict[str, Feed]:
    """Two posts, one shorter and without a picture, through all three graphs."""
    manifest, random = bundle.manifest, np.random.default_rng(0)
    steps = manifest.scales + 7
    mask = (np.arange(steps) < np.array([[steps], [steps - 4]])).astype(np.int64)
    vocabulary = (manifest.token_ids.cls_id, manifest.token_ids.sep_id, manifest.token_ids.unk_id)
    text: Feed = {"input_ids": random.choice(vocabulary, mask.shape), "attention_mask": mask}
    if manifest.shape_embedding:
        text["shape_ids"] = random.integers(0, 2, mask.shape)
    size = manifest.image.size
    units = unit_count(steps, manifest.scales)
    pool = (1, manifest.regions, manifest.width)
    return {
        "text": text,
        "image": {"pixel_values": random.normal(size=(1, 3, size, size)).astype(np.float32)},
        "fusion": {
            "unit_index_bs": np.tile(np.arange(units), (2, 1)),
            "pool_npd": random.normal(size=pool).astype(np.float32),
            "slot_b": np.array([0, -1]),
        },
    }


def write_fp16_cuda(
    bundle: Bundle,
    reference: Engine,
    tuning: Sequence[Post],
    held_out: Sequence[Post],
    *,
    given: bool = False,
) -> Variant:
    """Write the variant's graphs into a staged bundle, to `onnx/fp16-cuda/`.

    Args:
        bundle: With its fp32 variant.
        reference: Engine whose entities must be kept.
        tuning: Posts on which radii are measured, if the user gave them.
        held_out: What to judge on; nothing is tuned on them.
        given: Whether the user gave the posts; invented ones certify nothing.

    Returns:
        The variant for the manifest. Changed entities are recorded: fused operators leave no part
        that could stay float32.

    Raises:
        ExportError: A weight leaves the float16 range, or a float32 twin differs.
    """
    parts = read_parts(bundle)
    twins = check_twins(bundle, parts.plain, build(parts, Arithmetic.FLOAT, GRAPHS))
    run = {name: session_runner(model) for name, model in emulated(parts).items()}
    provider = GraphProvider(run, bundle, name=f"{FP16_CUDA}-emulated")
    judges = [PostJudge(bundle, reference, posts) for posts in (tuning if given else (), held_out)]
    tuned, low = (judge.ask_provider(provider) for judge in judges)
    result = judges[1].compare(low)
    log.info(
        f"  {result.changed_entities} of {result.entities} entities changed; raw scores within "
        f"{result.largest_error:.2e}"
    )
    return half_variant(
        bundle,
        build(parts, Arithmetic.HALF),
        result,
        {"twins": twins},
        name=FP16_CUDA,
        provider=PROVIDER,
        pairs=(judges[0].pair(tuned), judges[1].pair(low)),
        given=given,
        tolerance=half_tolerance(result.largest_error, judges[1].answers),
    )
