"""The island search: which parts must stay float32 so that no entity changes, and no more.

Start from all-half. Tensors whose measured range comes too near the end of float16 stay float32
with everything that reads them. Unchanged entities can be luck, so every post's lead must be
`MARGIN` times its error as well. While an entity changes or a lead is too small, the part is made
float32 that repairs most posts, then takes most of the error away, as long as it takes a tenth. A
part is a block (what lies between two LayerNormalizations) or, where leads alone are too small, all
between a graph's products. At the end every part that turned out not to be needed becomes half
again.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

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
# Parts looked at again after one was chosen and no post changes any more.
RUNNERS_UP = 4
log = logging.getLogger(__name__)
Keep = dict[str, dict[str, str]]
# Runs half graphs over the calibration posts, or some of them, and compares with the eager model.
Judge = Callable[[Mapping[str, HalfGraph], Sequence[int] | None], Comparison]


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
        stopped = ""
        if not _is_good(best):
            graphs, best, stopped = self._grow(chosen, graphs, best)
        for part in list(chosen):
            if not _is_good(best) or self.trials >= self.max_trials or len(chosen) == 1:
                break
            rest = [other for other in chosen if other is not part]
            fewer, result = self._try(rest)
            if _is_good(result):
                chosen, graphs, best = rest, fewer, result
                log.info(f"float16 again: {part.label}")
        return Search(
            graphs=graphs,
            evaluation=best,
            chosen=tuple(part.label for part in chosen),
            trials=self.trials,
            stopped=stopped,
        )

    def _grow(
        self, chosen: list[Block], graphs: dict[str, HalfGraph], best: Comparison
    ) -> tuple[dict[str, HalfGraph], Comparison, str]:
        """Choose parts until nothing changes and leads are large enough, or nothing pays."""
        pieces = [b for name, model in self.models.items() for b in blocks(name, model)]
        arithmetic = [between_products(name, model) for name, model in self.models.items()]
        log.info(
            f"{best.changed_entities} of {best.entities} entities change in float16, the closest "
            f"lead is {best.lead.times:.1f} times the error, {MARGIN:g} wanted: trying which of "
            f"{len(pieces)} blocks must stay float32"
        )
        runners_up: list[Block] = []
        while not _is_good(best):
            is_repair = bool(best.changed)
            parts = pieces if is_repair else runners_up or [*arithmetic, *pieces]
            ranked = self._ranked(chosen, [b for b in parts if b.nodes and b not in chosen], best)
            if ranked is None:
                return graphs, best, f"{self.max_trials} trials were made"
            for part in (part for part, pays in ranked if pays):
                more, full = self._try([*chosen, part])
                if len(full.changed) <= len(best.changed):
                    graphs, best = more, full
                    break
            else:
                return graphs, best, f"no part takes another {PAYS:.0%} of the error away"
            chosen.append(part)
            log.info(
                f"float32: {part.label}; {len(best.changed)} posts still change, lead now "
                f"{best.lead.times:.1f} times the error"
            )
            others = [other for other, _ in ranked if other is not part]
            runners_up = [] if is_repair else others[:RUNNERS_UP]
        return graphs, best, ""

    def _ranked(
        self, chosen: Sequence[Block], parts: Sequence[Block], best: Comparison
    ) -> list[tuple[Block, bool]] | None:
        """Parts, the best first, and whether they pay; None where no trials are left.

        They are compared on the posts that change and those with the smallest leads.
        """
        watched = sorted({*best.changed, *best.lead.nearest}) or None
        _, here = self._try(chosen, watched)
        tried = []
        for part in parts:
            if self.trials >= self.max_trials:
                return None
            tried.append((part, self._try([*chosen, part], watched)[1]))
        tried.sort(key=lambda item: (len(item[1].changed), item[1].score_error))
        changed, limit = len(here.changed), (1 - PAYS) * here.score_error
        return [(part, (len(r.changed), r.score_error) <= (changed, limit)) for part, r in tried]

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


def _is_good(result: Comparison) -> bool:
    return not result.changed and result.lead.times >= MARGIN


def _float_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of a float32 graph that make a float."""
    ready = infer(prepare(model))
    types = tensor_types(ready)
    for node in ready.graph.node:
        if any(types[made] == FLOAT for made in node.output if made):
            yield node


def blocks(name: str, model: onnx.ModelProto) -> list[Block]:
    """Split a graph's half nodes at LayerNormalizations, and at most `BLOCK_NODES` apiece."""
    parts: list[list[str]] = [[]]
    for node in _float_nodes(model):
        if parts[-1] and (node.op_type == "LayerNormalization" or len(parts[-1]) >= BLOCK_NODES):
            parts.append([])
        parts[-1].append(node.name)
    return [
        Block(
            graph=name,
            label=f"{name} block {number} ({nodes[0]} .. {nodes[-1]})",
            nodes=tuple(nodes),
        )
        for number, nodes in enumerate(parts)
        if nodes
    ]


def between_products(name: str, model: onnx.ModelProto) -> Block:
    """All half nodes that compute and are no product."""
    nodes = (n.name for n in _float_nodes(model) if n.op_type not in PRODUCTS | MOVES)
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
