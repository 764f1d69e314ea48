"""The fp16 variant of a bundle: convert, search islands, judge, write."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from amlr.errors import ParityError
from amlr.export.parity import Answer, Comparison
from amlr.export.precision.half import HalfGraph
from amlr.export.precision.islands import (
    MARGIN,
    Search,
    headroom_table,
    mask_nodes,
    search_islands,
)
from amlr.export.precision.judge import GRAPHS, Judged, PostJudge, emulated_radii, scan_ranges
from amlr.export.to_onnx import trace, write_models
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.results import Post

if TYPE_CHECKING:  # converting a bundle's own graphs needs no torch
    from amlr.export.graphs import GraphSpec

# Largest difference of raw logits the golden check on a device accepts, at least; measured error
# of the emulation times four where that is more, because a device adds in another order.
LEAST_TOLERANCE = 2.0**-6
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16Report:
    """What the export of a half variant found.

    Attributes:
        search: The graphs and the decisions.
        held_out: The same graphs on posts that the search never saw.
        witness: onnxruntime's half arithmetic on those posts.
        ranges: Largest activations, masks left out: graph, node, magnitude, headroom.
    """

    search: Search
    held_out: Comparison
    witness: Comparison
    ranges: list[tuple[str, str, float, float]]

    def parity(self) -> dict[str, Any]:
        """For the manifest."""
        best, witness = self.search.evaluation, self.witness
        return {
            **self.held_out.to_dict(),
            "judged_by": "emulated float16",
            "lead": self.held_out.lead.to_dict(),
            "search": {
                "posts": best.posts,
                "lead": best.lead.to_dict(),
                "stopped": self.search.stopped,
                "entities": best.entities,
                "changed_entities": best.changed_entities,
                "max_abs_error": dict(best.max_abs_error),
            },
            "witness": {
                "by": "onnxruntime-cpu float16",
                "changed_entities": witness.changed_entities,
                "max_abs_error": dict(witness.max_abs_error),
            },
            "islands": {
                name: [[i.node, i.op, i.reason] for i in graph.islands]
                for name, graph in self.search.graphs.items()
            },
            "casts": {name: graph.casts for name, graph in self.search.graphs.items()},
            "largest": [list(row) for row in self.ranges],
        }

    def lines(self) -> Iterable[str]:
        """For people."""
        for where, node, value, room in self.ranges[:3]:
            yield f"  largest: {value:.4g} in {where} {node} ({room:.1f}x below 65504)"
        for name, graph in self.search.graphs.items():
            yield f"  {name}: {graph.half_nodes} nodes float16, {graph.casts} casts, float32:"
            reasons: dict[tuple[str, str], int] = {}
            for island in graph.islands:
                key = (island.op, island.reason)
                reasons[key] = reasons.get(key, 0) + 1
            for (op, reason), count in reasons.items():
                yield f"    {count} x {op}: {reason}"
            if not reasons:
                yield "    nothing"
        for kind, result in (("searched", self.search.evaluation), ("held-out", self.held_out)):
            yield (
                f"  {result.changed_entities} of {result.entities} entities changed on "
                f"{result.posts} {kind} posts; raw scores within {result.largest_error:.2e}"
            )
            lead = result.lead
            yield (
                f"    closest lead {lead.closest:.3g}, error of leads {lead.error:.2g}, least lead "
                f"over error {lead.times:.2g} ({MARGIN:g} wanted on the searched posts); expected "
                f"to change: {1000 * lead.expected:.2g} posts in 1,000"
            )
        if self.search.stopped:
            yield f"  the search ended below {MARGIN:g}: {self.search.stopped}"
        yield (
            f"  second witness, onnxruntime float16 on the held-out posts: "
            f"{self.witness.changed_entities} changed, raw scores within "
            f"{self.witness.largest_error:.2e}"
        )


def fp32_models(
    bundle: Bundle, specs: Sequence["GraphSpec"] | None = None
) -> dict[str, onnx.ModelProto]:
    """Float32 graphs to convert.

    Args:
        bundle: Where they are read from when there are no specs.
        specs: From `build_graphs(model, ..., centre=True)`: regions are then centred.
    """
    if specs is not None:
        return {spec.name: trace(spec) for spec in specs if spec.name in GRAPHS}
    variant = bundle.manifest.variants["fp32"]
    paths = {name: bundle.graph_path(variant, name) for name in GRAPHS}
    return {name: onnx.load(str(path)) for name, path in paths.items()}


def write_fp16(
    folder: Path,
    bundle: Bundle,
    eager: Engine,
    posts: Sequence[Post],
    held_out: Sequence[Post],
    *,
    given: bool = False,
    specs: Sequence["GraphSpec"] | None = None,
) -> tuple[Variant, Fp16Report]:
    """Add the fp16 variant to a staged bundle.

    Args:
        folder: The staged bundle; files go to `onnx/fp16/`.
        bundle: The same folder, opened, with its fp32 variant.
        eager: Engine whose entities must be kept; the eager model's, or the fp32 variant's.
        posts: Calibration posts, with pictures; islands are searched on them.
        held_out: Other posts; the record of parity is theirs.
        given: Whether the user gave the posts; invented ones certify nothing.
        specs: Graphs with centred regions; None converts the bundle's own fp32 graphs.

    Returns:
        The variant for the manifest, and the report.

    Raises:
        ExportError: A graph cannot be converted.
        ParityError: Entities change on the calibration posts, even with every block float32.
    """
    models = fp32_models(bundle, specs)
    log.info(f"scanning activation ranges over {len(posts)} posts")
    ranges = scan_ranges(bundle, models, posts)
    judge = PostJudge(bundle, eager, posts)
    search = search_islands(models, ranges, judge)
    log.info(f"verifying on {len(held_out)} other posts")
    verifier = PostJudge(bundle, eager, held_out)
    verified = Judged(judge=verifier, low=verifier.ask(search.graphs))
    report = Fp16Report(
        search=search,
        held_out=verifier.compare(verified.low),
        witness=verifier.witness(search.graphs),
        ranges=headroom_table(ranges, {n: mask_nodes(m) for n, m in models.items()}, top=8),
    )
    for line in report.lines():
        log.info(line)
    best = search.evaluation
    if best.changed:
        raise ParityError(
            f"fp16: {best.changed_entities} of {best.entities} entities change on {best.posts} "
            f"posts; export without fp16"
        )
    searched = Judged(judge=judge, low=judge.ask(search.graphs))
    radii = emulated_radii(bundle, searched, verified, given=given)
    graphs = write_half(search.graphs.values(), folder / "onnx" / "fp16")
    variant = Variant(
        precision="fp16",
        # onnxruntime and OpenVINO on a CPU gain nothing from half graphs.
        provider="tensorrt",
        graphs={name: f"onnx/fp16/{path.name}" for name, path in graphs.items()},
        parity=report.parity() | radii,
        tolerance=half_tolerance(
            max(best.largest_error, report.held_out.largest_error), judge.answers
        ),
    )
    return variant, report


def half_tolerance(worst: float, answers: Iterable[Answer]) -> float:
    """What the golden check on a device may differ by, from the error that emulation showed."""
    logits = [answer.scores.unit_logits_uc for answer in answers if answer.scores is not None]
    largest = max((float(abs(each).max(initial=1.0)) for each in logits), default=1.0)
    return max(LEAST_TOLERANCE, 4 * worst / max(1.0, largest))


def write_half(graphs: Iterable[HalfGraph], folder: Path) -> dict[str, Path]:
    """Write converted graphs, which stay as they are, with one shared weights file."""

    def copies() -> Iterator[tuple[str, onnx.ModelProto]]:
        for graph in graphs:
            model = onnx.ModelProto()
            model.CopyFrom(graph.model)
            yield graph.name, model

    return write_models(copies(), folder)
