"""The island search: which parts must stay float32 so that no entity changes, and no more.

Start from all-half. Tensors whose measured range comes too near the end of float16 stay float32
with everything that reads them. If entities still change, blocks (what lies between two
LayerNormalizations) are made float32 one by one, always the one that repairs most posts for the
fewest casts, and at the end every block that turned out not to be needed becomes half again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import onnx

from amlr.export.precision.graph_tools import FLOAT, MOVES, infer, prepare, tensor_types
from amlr.export.precision.half import HALF_MAX, HalfGraph, to_half

# A measured maximum this many times below the end of float16 is safe on unseen posts.
HEADROOM = 4.0
BLOCK_NODES = 24
Say = Callable[[str], None]
Keep = dict[str, dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Half graphs against the eager model.

    Attributes:
        posts: Posts looked at.
        entities: Entities of the eager model.
        changed: Indices of posts whose entities differ.
        changed_entities: How many differ.
        max_abs_error: Largest difference of each raw output.
    """

    posts: int
    entities: int
    changed: tuple[int, ...]
    changed_entities: int
    max_abs_error: Mapping[str, float]

    @property
    def worst(self) -> float:
        """Largest difference over all outputs."""
        return max(self.max_abs_error.values(), default=0.0)


class Judge(Protocol):
    """Runs half graphs over the calibration posts, or some of them."""

    def __call__(
        self, graphs: Mapping[str, HalfGraph], only: Sequence[int] | None = None
    ) -> Evaluation:
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
    """

    graphs: dict[str, HalfGraph]
    evaluation: Evaluation
    chosen: tuple[str, ...]
    trials: int


def search_islands(
    models: Mapping[str, onnx.ModelProto],
    ranges: Mapping[str, Mapping[str, float]],
    judge: Judge,
    *,
    max_trials: int = 100,
    say: Say = lambda line: None,
) -> Search:
    """Find the smallest set of float32 blocks that keeps all entities.

    Args:
        models: Float32 graphs by name.
        ranges: Largest magnitude of each node's output, by graph and node; from `RangeScan`.
        judge: Compares candidates with the eager model.
        max_trials: Most runs of the judge; the best answer so far is returned then.
        say: Receives a line per decision.
    """
    search = _Search(models, ranges, judge, max_trials, say)
    return search.run()


@dataclass
class _Search:
    models: Mapping[str, onnx.ModelProto]
    ranges: Mapping[str, Mapping[str, float]]
    judge: Judge
    max_trials: int
    say: Say
    trials: int = 0
    forced: Keep = field(default_factory=dict)

    def run(self) -> Search:
        for name, model in self.models.items():
            self.forced[name] = out_of_range(model, self.ranges.get(name, {}))
            for node, reason in self.forced[name].items():
                self.say(f"float32: {name} {node}: {reason}")
        chosen: list[Block] = []
        graphs, best = self._try(chosen)
        candidates = [b for name, model in self.models.items() for b in blocks(name, model)]
        while best.changed and candidates and self.trials < self.max_trials:
            block = self._best_addition(chosen, candidates, best.changed)
            candidates.remove(block)
            chosen.append(block)
            graphs, best = self._try(chosen)
            self.say(f"float32: {block.label}; {len(best.changed)} posts still change")
        for block in list(chosen):
            if best.changed or self.trials >= self.max_trials or len(chosen) == 1:
                break
            rest = [b for b in chosen if b is not block]
            fewer, result = self._try(rest)
            if not result.changed:
                chosen, graphs, best = rest, fewer, result
                self.say(f"float16 again: {block.label}")
        return Search(
            graphs=graphs,
            evaluation=best,
            chosen=tuple(block.label for block in chosen),
            trials=self.trials,
        )

    def _convert(self, chosen: Sequence[Block]) -> dict[str, HalfGraph]:
        result = {}
        for name, model in self.models.items():
            keep = dict(self.forced[name])
            for block in chosen:
                if block.graph == name:
                    keep |= dict.fromkeys(block.nodes, f"entities change without it: {block.label}")
            result[name] = to_half(name, model, keep)
        return result

    def _try(
        self, chosen: Sequence[Block], only: Sequence[int] | None = None
    ) -> tuple[dict[str, HalfGraph], Evaluation]:
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
            scored.append((len(result.changed), result.worst, casts, place))
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
    ranges: Mapping[str, Mapping[str, float]], top: int = 5
) -> list[tuple[str, str, float, float]]:
    """The largest activations: graph, node, magnitude, how many times it fits below 65504."""
    rows = [
        (graph, node, value, HALF_MAX / value if value else float("inf"))
        for graph, values in ranges.items()
        for node, value in values.items()
    ]
    return sorted(rows, key=lambda row: -row[2])[:top]
