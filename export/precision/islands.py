"""The island search: which parts must stay float32 so that no entity changes, and no more.

Start from all-half. Tensors whose measured range comes too near the end of float16 stay float32
with everything that reads them. If entities still change, blocks (what lies between two
LayerNormalizations) are made float32 one by one, always the one that repairs most posts for the
fewest casts, and at the end every block that turned out not to be needed becomes half again.

Unchanged is not enough, for that can be luck: every post's lead must be `MARGIN` times its error.
While it is not, what takes most of the error away is made float32, as long as it takes a tenth.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx
from onnx import numpy_helper

from amlr.export.parity import Comparison
from amlr.export.precision.graph_tools import (
    FLOAT,
    MOVES,
    PRODUCTS,
    infer,
    prepare,
    tensor_types,
)
from amlr.export.precision.half import HALF_MAX, HalfGraph, to_half

# A measured maximum this many times below the end of float16 is safe on unseen posts.
HEADROOM = 4.0
BLOCK_NODES = 24
# A post's lead over its error. Errors are about normal; beyond 3 of them, 1 post in 700 changes.
MARGIN = 3.0
# Least share of the error that a part must take away to be worth float32.
PAYS = 0.1
# Parts looked at again after one was chosen.
RUNNERS_UP = 4
# "Minus infinity" of a mask: no scale factor of a graph is this large.
MASK_LEAST = 1000.0
MASK_ENDS = {"Softmax"}
log = logging.getLogger(__name__)
Keep = dict[str, dict[str, str]]


class Judge(Protocol):
    """Runs half graphs over the calibration posts, or some of them."""

    def __call__(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> Comparison:
        """Compare with the eager model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Neighbouring nodes that change type together."""

    graph: str
    label: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Outcome of a search.

    Attributes:
        graphs: Converted graphs by name.
        evaluation: Of the final graphs on all posts.
        chosen: Labels of the blocks that stayed float32.
        trials: Runs of the judge.
        stopped: Why the search ended where the leads are not large enough.
    """

    graphs: dict[str, HalfGraph]
    evaluation: Comparison
    chosen: tuple[str, ...]
    trials: int
    stopped: str = ""


def search_islands(
    models: Mapping[str, onnx.ModelProto],
    ranges: Mapping[str, Mapping[str, float]],
    judge: Judge,
    *,
    max_trials: int = 100,
) -> Search:
    """Find the smallest set of float32 blocks that keeps all entities; logs each decision.

    Args:
        models: Float32 graphs by name.
        ranges: Largest magnitude of each node's output, by graph and node; from `RangeScan`.
        judge: Compares candidates with the eager model.
        max_trials: Most runs of the judge; the best answer so far is returned then.
    """
    return _Search(models, ranges, judge, max_trials).run()


@dataclass
class _Search:
    models: Mapping[str, onnx.ModelProto]
    ranges: Mapping[str, Mapping[str, float]]
    judge: Judge
    max_trials: int
    trials: int = 0
    forced: Keep = field(default_factory=dict)
    converted: dict[tuple[str, frozenset[str]], HalfGraph] = field(default_factory=dict)

    def run(self) -> Search:
        for name, model in self.models.items():
            self.forced[name] = out_of_range(model, self.ranges.get(name, {}))
            for node, reason in self.forced[name].items():
                log.info(f"float32: {name} {node}: {reason}")
        chosen: list[Block] = []
        graphs, best = self._try(chosen)
        candidates = [b for name, model in self.models.items() for b in blocks(name, model)]
        if best.changed:
            log.info(
                f"{best.changed_entities} of {best.entities} entities change in float16; trying "
                f"which of {len(candidates)} blocks must stay float32"
            )
        while best.changed and candidates and self.trials < self.max_trials:
            block = self._best_addition(chosen, candidates, best.changed)
            candidates.remove(block)
            chosen.append(block)
            graphs, best = self._try(chosen)
            log.info(f"float32: {block.label}; {len(best.changed)} posts still change")
        for block in list(chosen):
            if best.changed or self.trials >= self.max_trials or len(chosen) == 1:
                break
            rest = [b for b in chosen if b is not block]
            fewer, result = self._try(rest)
            if not result.changed:
                chosen, graphs, best = rest, fewer, result
                log.info(f"float16 again: {block.label}")
        stopped = ""
        if not best.changed and best.lead.times < MARGIN:
            log.info(
                f"the closest lead is {best.lead.times:.1f} times the error, {MARGIN:g} wanted: "
                "trying what takes the error away"
            )
            rest = [b for b in self._parts() if b not in chosen]
            graphs, best, stopped = self._shrink(chosen, rest, graphs, best)
        return Search(
            graphs=graphs,
            evaluation=best,
            chosen=tuple(block.label for block in chosen),
            trials=self.trials,
            stopped=stopped,
        )

    def _parts(self) -> list[Block]:
        """All between a graph's products, which costs no product its float16; then blocks."""
        arithmetic = [between_products(name, model) for name, model in self.models.items()]
        return [b for b in arithmetic if b.nodes] + [
            b for name, model in self.models.items() for b in blocks(name, model)
        ]

    def _shrink(
        self,
        chosen: list[Block],
        parts: list[Block],
        graphs: dict[str, HalfGraph],
        best: Comparison,
    ) -> tuple[dict[str, HalfGraph], Comparison, str]:
        """Add what takes most of the error away, until leads are large enough or nothing pays.

        Parts are compared on the posts with the smallest leads, and one is taken if no answer
        changes on any post.
        """
        near = best.lead.nearest or None
        _, here = self._try(chosen, near)
        while best.lead.times < MARGIN:
            tried = []
            for part in parts:
                if self.trials >= self.max_trials:
                    return graphs, best, f"{self.max_trials} trials were made"
                tried.append((part, self._try([*chosen, part], near)[1]))
            tried.sort(key=lambda item: item[1].score_error)
            limit = (1 - PAYS) * here.score_error
            for part, result in tried:
                if result.changed or result.score_error > limit:
                    continue
                more, full = self._try([*chosen, part])
                if not full.changed:
                    graphs, best, here = more, full, result
                    break
            else:
                return graphs, best, f"no part takes another {PAYS:.0%} of the error away"
            chosen.append(part)
            log.info(f"float32: {part.label}; lead now {best.lead.times:.1f} times the error")
            parts = [other for other, _ in tried if other is not part][:RUNNERS_UP]
        return graphs, best, ""

    def _convert(self, chosen: Sequence[Block]) -> dict[str, HalfGraph]:
        result = {}
        for name, model in self.models.items():
            keep = dict(self.forced[name])
            for block in chosen:
                if block.graph == name:
                    keep |= dict.fromkeys(block.nodes, f"the search chose {block.label}")
            # The same graph object again where nothing changed: judges keep its sessions.
            key = name, frozenset(keep)
            if key not in self.converted:
                self.converted = {k: v for k, v in self.converted.items() if k[0] != name}
                self.converted[key] = to_half(name, model, keep)
            result[name] = self.converted[key]
        return result

    def _try(
        self, chosen: Sequence[Block], only: Sequence[int] | None = None
    ) -> tuple[dict[str, HalfGraph], Comparison]:
        graphs = self._convert(chosen)
        self.trials += 1
        return graphs, self.judge(graphs, only)

    def _best_addition(
        self, chosen: Sequence[Block], candidates: Sequence[Block], changed: Sequence[int]
    ) -> Block:
        """Try each block on the changed posts only: repaired posts, then casts, then error."""
        scored: list[tuple[int, float, int, int]] = []
        for place, block in enumerate(candidates):
            if scored and self.trials >= self.max_trials:
                break
            graphs, result = self._try([*chosen, block], changed)
            casts = sum(graph.casts for graph in graphs.values())
            scored.append((len(result.changed), result.largest_error, casts, place))
        return candidates[min(scored)[3]]


def blocks(name: str, model: onnx.ModelProto) -> list[Block]:
    """Split a graph's half nodes at LayerNormalizations, and at most `BLOCK_NODES` apiece."""
    ready = infer(prepare(model))
    types = tensor_types(ready)
    found: list[Block] = []
    nodes: list[str] = []

    def close() -> None:
        if nodes:
            label = f"{name} block {len(found)} ({nodes[0]} .. {nodes[-1]})"
            found.append(Block(graph=name, label=label, nodes=tuple(nodes)))
            nodes.clear()

    for node in ready.graph.node:
        if not any(types[made] == FLOAT for made in node.output if made):
            continue
        if node.op_type == "LayerNormalization" or len(nodes) >= BLOCK_NODES:
            close()
        nodes.append(node.name)
    close()
    return found


def between_products(name: str, model: onnx.ModelProto) -> Block:
    """All half nodes that compute and are no product."""
    ready = infer(prepare(model))
    types = tensor_types(ready)
    nodes = [
        node.name
        for node in ready.graph.node
        if node.op_type not in PRODUCTS | MOVES
        and any(types[made] == FLOAT for made in node.output if made)
    ]
    return Block(graph=name, label=f"{name}, all between its products", nodes=tuple(nodes))


def out_of_range(model: onnx.ModelProto, largest: Mapping[str, float]) -> dict[str, str]:
    """Nodes that make or read a tensor too near the end of float16, with the reason."""
    ready = prepare(model)
    reasons: dict[str, str] = {}
    big: dict[str, float] = {}  # tensor -> magnitude
    for node in ready.graph.node:
        reached = max((big[name] for name in node.input if name in big), default=0.0)
        own = largest.get(node.name, reached if node.op_type in MOVES else 0.0)
        if own * HEADROOM > HALF_MAX:
            big |= dict.fromkeys(node.output, own)
            reasons[node.name] = f"reaches {own:.3g}, float16 ends at {HALF_MAX:.0f}"
        elif reached:
            reasons[node.name] = f"reads a tensor that reaches {reached:.3g}"
    return reasons


def headroom_table(
    ranges: Mapping[str, Mapping[str, float]],
    masks: Mapping[str, Collection[str]] | None = None,
    top: int = 5,
) -> list[tuple[str, str, float, float]]:
    """The largest activations: graph, node, magnitude, how many times it fits below 65504.

    Args:
        ranges: As for `search_islands`.
        masks: Nodes to leave out, by graph: a mask is large on purpose, and hides the rest.
        top: Rows at most.
    """
    rows = [
        (graph, node, value, HALF_MAX / value if value else float("inf"))
        for graph, values in ranges.items()
        for node, value in values.items()
        if masks is None or node not in masks.get(graph, ())
    ]
    return sorted(rows, key=lambda row: -row[2])[:top]


def mask_nodes(model: onnx.ModelProto) -> set[str]:
    """Nodes whose values hold an attention mask: from its large constant up to the Softmax."""
    ready = prepare(model)
    large = {
        tensor.name
        for tensor in ready.graph.initializer
        if tensor.data_type == FLOAT and abs(_scalar(tensor)) >= MASK_LEAST
    }
    holding, found = set(large), set()
    for node in ready.graph.node:
        if node.op_type in MASK_ENDS or not holding.intersection(node.input):
            continue
        holding.update(node.output)
        found.add(node.name)
    return found


def _scalar(tensor: onnx.TensorProto) -> float:
    value = numpy_helper.to_array(tensor)
    return float(value.ravel()[0]) if value.size == 1 else 0.0
