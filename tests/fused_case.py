"""Graphs of tiny models, recognised and written again."""

import functools
from typing import Any

import numpy as np
import onnx

from amlr.export.fused.variant import Models, Parts, build, merge_products, recognise
from amlr.export.fused.writer import Arithmetic
from amlr.export.graphs import build_graphs
from amlr.export.precision.graph_tools import open_session
from amlr.export.to_onnx import trace
from log_lines import log_lines
from tiny_model import IMAGE_SIZE, VOCABULARY, tiny_config, tiny_model

GRAPHS = ("text", "image", "fusion")
# Text encoder, picture encoder, and what else differs: folded heads or narrow ones, with a last
# map of text and regions or without, word shapes or none.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-shapes": ("bert", "vit", {"shape_classes": 9}),
    "bert-wider": ("bert", "vit", {"shape_classes": 0, "width": 48, "heads": 4, "head_width": 16}),
    "mpnet": ("mpnet", "mobilenet", {"shape_classes": 9, "scales": 3}),
}
Feed = dict[str, np.ndarray]


class Case:
    """One tiny model's graphs, recognised and written again."""

    def __init__(self, kind: str) -> None:
        text, image, options = KINDS[kind]
        self.config = tiny_config(text, image, **options)
        specs = build_graphs(tiny_model(self.config), image_size=IMAGE_SIZE)
        plain = {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}
        with log_lines() as self.lines:
            self.parts: Parts = recognise(plain, 128)
        self.models: dict[Arithmetic, Models] = {a: build(self.parts, a) for a in Arithmetic}
        self.for_tensorrt: Models = merge_products(plain)
        self._sessions: dict[int, Any] = {}

    def run(self, model: onnx.ModelProto, feed: Feed) -> Feed:
        """Outputs by name; sessions are kept."""
        session = self._sessions.get(id(model)) or open_session(model)
        self._sessions[id(model)] = session
        names = [output.name for output in session.get_outputs()]
        wanted = {each.name for each in session.get_inputs()}
        feed = {name: value for name, value in feed.items() if name in wanted}
        return dict(zip(names, session.run(names, feed), strict=True))

    def feed(self, lengths: list[int], units: int, seed: int) -> Feed:
        """All inputs of all graphs: right-padded posts, any units, some without a picture."""
        random, config = np.random.default_rng(seed), self.config
        steps = max(*lengths, config.scales)
        mask = (np.arange(steps) < np.array(lengths)[:, None]).astype(np.int64)
        pool = self.parts.plain["fusion"].graph.input[2].type.tensor_type.shape.dim
        count = config.scales * steps - config.scales * (config.scales - 1) // 2
        posts = len(lengths)
        return {
            "input_ids": random.integers(0, VOCABULARY, mask.shape) * mask,
            "attention_mask": mask,
            "shape_ids": random.integers(0, 9, mask.shape) * mask,
            "pixel_values": random.normal(size=(2, 3, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32),
            "hidden_btd": random.normal(size=(posts, steps, config.width)).astype(np.float32),
            "unit_index_bs": random.integers(0, count, (posts, units)),
            "pool_npd": random.normal(size=(3, pool[1].dim_value, pool[2].dim_value)).astype("f4"),
            "slot_b": random.integers(-1, 3, posts),
        }


@functools.cache
def tiny_case(kind: str) -> Case:
    """One case for all tests that want it."""
    return Case(kind)


def worst(expected: Feed, actual: Feed, feed: Feed) -> float:
    real = feed["attention_mask"] == 1
    errors = []
    for name, value in expected.items():
        # What lies past a post's end means nothing.
        a, b = (v[real] if name in ("hidden_btd", "emissions_bty") else v
                for v in (value, actual[name]))  # fmt: skip
        assert a.dtype == b.dtype == np.float32
        assert a.shape == b.shape
        assert np.isfinite(b).all()
        errors.append(float(np.abs(a - b).max()))
    return max(errors)
