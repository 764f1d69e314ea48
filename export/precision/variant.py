"""The fp16 variant of a bundle: convert, search islands, judge, write."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx

from amlr.errors import ParityError
from amlr.export.parity import Answer, Comparison
from amlr.export.precision.islands import MARGIN, Search, search_islands
from amlr.export.precision.judge import EMULATED, GRAPHS, PostJudge, scan_ranges
from amlr.export.radii import Pair, radii_record
from amlr.export.to_onnx import write_models
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.results import Post

# Largest difference of raw logits the golden check on a device accepts, at least; measured error
# of the emulation times four where that is more, because a device adds in another order.
LEAST_TOLERANCE = 2.0**-6
log = logging.getLogger(__name__)


def _search_record(search: Search) -> dict[str, Any]:
    """What the manifest says of a search: its decisions, and its posts' numbers."""
    best = search.evaluation
    return {
        "search": {
            "posts": best.posts,
            "lead": best.lead.to_dict(),
            "stopped": search.stopped,
            "entities": best.entities,
            "changed_entities": best.changed_entities,
            "max_abs_error": dict(best.max_abs_error),
        },
        "islands": {
            name: [[i.node, i.op, i.reason] for i in graph.islands]
            for name, graph in search.graphs.items()
        },
        "casts": {name: graph.casts for name, graph in search.graphs.items()},
    }


def _log_search(search: Search, held_out: Comparison) -> None:
    for name, graph in search.graphs.items():
        reasons = Counter((island.op, island.reason) for island in graph.islands)
        log.info(f"  {name}: {graph.half_nodes} nodes float16, {graph.casts} casts, float32:")
        for (op, reason), count in reasons.items():
            log.info(f"    {count} x {op}: {reason}")
    for kind, result in (("searched", search.evaluation), ("held-out", held_out)):
        lead = result.lead
        log.info(
            f"  {result.changed_entities} of {result.entities} entities changed on "
            f"{result.posts} {kind} posts; raw scores within {result.largest_error:.2e}"
        )
        log.info(
            f"    closest lead {lead.closest:.3g}, error of leads {lead.error:.2g}, least lead "
            f"over error {lead.times:.2g} ({MARGIN:g} wanted on the searched posts); expected "
            f"to change: {1000 * lead.expected:.2g} posts in 1,000"
        )
    if search.stopped:
        log.info(f"  the search ended below {MARGIN:g}: {search.stopped}")


def fp32_models(bundle: Bundle) -> dict[str, onnx.ModelProto]:
    """A bundle's float32 graphs, to convert."""
    variant = bundle.manifest.variants["fp32"]
    paths = {name: bundle.graph_path(variant, name) for name in GRAPHS}
    return {name: onnx.load(str(path)) for name, path in paths.items()}


def write_fp16(
    bundle: Bundle,
    reference: Engine,
    tuning: Sequence[Post],
    held_out: Sequence[Post],
    *,
    models: Mapping[str, onnx.ModelProto],
    given: bool = False,
) -> tuple[Variant, Search]:
    """Write the graphs of the fp16 variant into a staged bundle, to `onnx/fp16/`.

    Args:
        bundle: With its fp32 variant.
        reference: Engine whose entities must be kept; the eager model's, or the fp32 variant's.
        tuning: Posts with pictures; islands are searched on them.
        held_out: Other posts; the record of parity is theirs.
        models: Float32 graphs to convert.
        given: Whether the user gave the posts; invented ones certify nothing.

    Returns:
        The variant for the manifest, and the search.

    Raises:
        ExportError: A graph cannot be converted.
        ParityError: Entities change on the tuning posts, whatever stays float32.
    """
    log.info(f"scanning activation ranges over {len(tuning)} posts")
    judge = PostJudge(bundle, reference, tuning)
    search = search_islands(models, scan_ranges(bundle, models, tuning), judge)
    log.info(f"verifying on {len(held_out)} other posts")
    verifier = PostJudge(bundle, reference, held_out)
    verified = verifier.ask(search.graphs)
    compared = verifier.compare(verified)
    _log_search(search, compared)
    best = search.evaluation
    if best.changed:
        raise ParityError(
            f"fp16: {best.changed_entities} of {best.entities} entities change on {best.posts} "
            f"posts; export without fp16"
        )
    variant = half_variant(
        bundle,
        {name: graph.model for name, graph in search.graphs.items()},
        compared,
        _search_record(search),
        name="fp16",
        # onnxruntime and OpenVINO on a CPU gain nothing from half graphs.
        provider="tensorrt",
        pairs=(judge.pair(judge.ask(search.graphs)), verifier.pair(verified)),
        given=given,
        tolerance=half_tolerance(max(best.largest_error, compared.largest_error), judge.answers),
    )
    return variant, search


def half_variant(
    bundle: Bundle,
    models: Mapping[str, onnx.ModelProto],
    compared: Comparison,
    record: Mapping[str, Any],
    *,
    name: str,
    provider: str,
    pairs: tuple[Pair, Pair],
    given: bool,
    tolerance: float,
) -> Variant:
    """Write graphs that were judged by emulation to `onnx/NAME/`, and what the manifest says.

    Args:
        bundle: A staged one.
        models: Graphs by name.
        compared: On held-out posts.
        record: What else is said of them.
        name: Of the variant.
        provider: That serves it.
        pairs: Answers to tuning posts and to held-out posts, for the radii.
        given: Whether the user gave the posts.
        tolerance: Of the golden check on a device.
    """
    radii = radii_record(bundle, *pairs, given=given, reserve=EMULATED)
    files = write_models(models.items(), bundle.path / "onnx" / name)
    return Variant(
        precision="fp16",
        provider=provider,
        graphs={graph: f"onnx/{name}/{path.name}" for graph, path in files.items()},
        parity={
            **compared.to_dict(),
            "judged_by": "emulated float16",
            "lead": compared.lead.to_dict(),
            **record,
            **radii,
        },
        tolerance=tolerance,
    )


def half_tolerance(worst: float, answers: Iterable[Answer]) -> float:
    """What the golden check on a device may differ by, from the error that emulation showed."""
    logits = [answer.scores.unit_logits_uc for answer in answers if answer.scores is not None]
    largest = max((float(abs(each).max(initial=1.0)) for each in logits), default=1.0)
    return max(LEAST_TOLERANCE, 4 * worst / max(1.0, largest))
