"""Device times of the decoders over units: scores, decoding, confidence, certificates.

Shape letters: B posts, U units and runs, C classes, Y tags, W words.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.decoders import TAGS, random_posts
from amlr.benchmarks.gpu.kernel_clock import DeviceClock, host_us, memory_floor
from amlr.kernels import box_redecode, entity_marginals, joint_scores, segmental_decode
from amlr.kernels.cuda import DeviceWork, SegmentalOutputs
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_segmental import JointInputs, SegmentalKernels, UnitTable, Winner
from amlr.kernels.units import Units

LABELS = ("PER", "LOC", "ORG", "OTHER")
# Columns of the emissions: checkpoints have tags that play no part.
UNIT_TAGS = 13
_RADIUS, _WEIGHT = 0.1, 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joint:
    """One batch of posts on the device, and what NumPy makes of it."""

    units: Units
    lengths_b: npt.NDArray[np.int64]
    table: UnitTable
    inputs: JointInputs
    outputs: SegmentalOutputs
    winner: Winner
    scores_uc: npt.NDArray[np.float32]
    g: int
    radii: int
    worst: int
    sure_u: npt.NDArray[np.float32]
    sure: int
    certified_b: npt.NDArray[np.int32]
    certified: int


def _upload_posts(work: DeviceWork, posts: int, units_each: int) -> _Joint:
    drawn = random_posts(posts, units_each)
    lengths = np.diff(drawn["word_offsets"])
    settings: dict[str, Any] = {"bias": 0.0, "weight": _WEIGHT, "tags": TAGS, "labels": LABELS}
    units = joint_scores(**drawn, **settings)
    plain = work.table(units, lengths)
    table = replace(plain, word_offsets=work.put(drawn["word_offsets"].astype(np.int64)))
    has_logits = units.has_logits_u
    own = np.ones(plain.units, np.bool_) if has_logits is None else has_logits
    rows = np.full(plain.units, -1, np.int32)
    rows[own] = np.arange(int(own.sum()))
    words = len(drawn["word_emissions_wy"])
    idle = ((0, 0), (0, UNIT_TAGS - len(TAGS)))
    columns = [TAGS.index("O")]
    columns += [TAGS.index(f"{kind}-{label}") for kind in "BI" for label in LABELS]
    inputs = JointInputs(
        logit_rows=work.put(rows),
        logits=work.put(drawn["unit_logits_uc"]),
        emission_rows=work.put(np.arange(words, dtype=np.int32)),
        emissions=work.put(np.pad(drawn["word_emissions_wy"], idle)),
        columns=work.put(np.array(columns, np.int32)),
        bias=0.0,
        weight=_WEIGHT,
    )
    outputs = SegmentalOutputs(work, posts, plain.units)
    scores, certified = np.zeros_like(units.scores_uc), np.zeros(posts, np.int32)
    sure = np.zeros(plain.units, np.float32)
    return _Joint(
        units=units,
        lengths_b=lengths,
        table=table,
        inputs=inputs,
        outputs=outputs,
        winner=replace(outputs.winner, owner=work.room(np.empty(words, np.int32))),
        scores_uc=scores,
        g=work.room(scores),
        radii=work.put(np.full((posts, 2), _RADIUS)),
        worst=work.room(np.empty(scores.shape, np.float64)),
        sure_u=sure,
        sure=work.put(sure),  # chosen units only are written
        certified_b=certified,
        certified=work.room(certified),
    )


def unit_rows(
    clock: DeviceClock, library: KernelLibrary, posts: int, units: int
) -> list[dict[str, Any]]:
    """Times of each kernel and of the sequences a provider enqueues, for `units` a post."""
    kernels = SegmentalKernels(library, tags=UNIT_TAGS)
    with clock.work() as work:
        joint = _upload_posts(work, posts, units)
        work.stream.synchronize()
        parts = _unit_parts(kernels, clock, joint)
        times = {}
        for name, sequence in _UNIT_SEQUENCES.items():
            times[name] = clock.time([parts[part] for part in sequence])
        joint.outputs.fetch(
            (joint.scores_uc, joint.g),
            (joint.sure_u, joint.sure),
            (joint.certified_b, joint.certified),
        )
    checks, numpy_us = _unit_checks(joint)
    cells, count = joint.scores_uc.size, joint.table.units
    words = int(joint.lengths_b.sum())
    read = 4 * count * (1 + len(LABELS)) + 4 * words * UNIT_TAGS + 12 * count
    nbytes = {
        "joint_scores": read + 4 * cells,
        "segmental_viterbi": 4 * cells + 12 * count,
        "segmental_confidence": 4 * cells + 8 * count,
        "box re-decode": 4 * count * (1 + len(LABELS)) + 2 * 8 * cells + 12 * count,
        "joint box re-decode": read + 2 * 8 * cells + 12 * count,
        "joint and segmental": read + 12 * count,
    }
    rows: list[dict[str, Any]] = []
    for name, row in times.items():
        rows.append(
            {
                "kernel": name,
                "batch": posts,
                "units": count,
                "longest_words": joint.table.max_words,
                **row,
                **(memory_floor(nbytes[name]) if name in nbytes else {}),
                "numpy_us": numpy_us.get(name),
                **checks,
            }
        )
    return rows


# In this order each finds what it reads: the first sequence that holds a kernel follows its inputs.
_UNIT_SEQUENCES = {
    "joint_scores": ("joint_scores",),
    "segmental_viterbi": ("decode",),
    "segmental_confidence": ("confidence",),
    "box re-decode": ("box_scores", "certify"),
    "joint box re-decode": ("joint_box_scores", "certify"),
    "joint and segmental": ("joint_scores", "decode"),
    "joint, segmental, confidence": ("joint_scores", "decode", "confidence"),
}


def _unit_parts(
    kernels: SegmentalKernels, clock: DeviceClock, joint: _Joint
) -> dict[str, Callable[[], None]]:
    stream, table, inputs, winner = clock.stream, joint.table, joint.inputs, joint.winner

    def box_scores(inputs: JointInputs) -> None:
        kernels.joint_box_scores(
            stream, table, inputs, winner, radii=joint.radii, worst=joint.worst
        )

    return {
        "joint_scores": lambda: kernels.joint_scores(stream, table, inputs, scores=joint.g),
        "decode": lambda: kernels.decode(stream, table, winner, scores=joint.g),
        "confidence": lambda: kernels.confidence(
            stream, table, winner, scores=joint.g, confidence=joint.sure
        ),
        # Segmental scores are joint ones without emissions.
        "box_scores": lambda: box_scores(replace(inputs, weight=0.0)),
        "joint_box_scores": lambda: box_scores(inputs),
        "certify": lambda: kernels.certify(
            stream, table, winner, worst=joint.worst, certified=joint.certified
        ),
    }


def _unit_checks(joint: _Joint) -> tuple[dict[str, Any], dict[str, float]]:
    """Whether the device's answers are NumPy's, and NumPy's times on one core."""
    units, lengths = joint.units, joint.lengths_b
    entities, best_b = segmental_decode(units, lengths)
    answers = joint.outputs.entities(units)
    has_logits = units.has_logits_u
    scored = np.ones(len(units.start_u), np.bool_) if has_logits is None else has_logits
    box = partial(
        box_redecode,
        units,
        lengths,
        radius=np.where(scored, _RADIUS, 0.0)[:, None],
        token_radius=_RADIUS,
        weight=_WEIGHT,
        answer=entities,
    )
    marginals = entity_marginals(units, lengths)
    error = 0.0
    for b, count in enumerate(joint.outputs.counts_b.tolist()):
        first = int(units.post_offsets[b])
        unit, label = joint.outputs.chosen_u2[first : first + count].T
        away = np.abs(joint.sure_u[first : first + count] - marginals[unit, label])
        error = max(error, float(away.max(initial=0)))
    checks = {
        "equal": np.array_equal(joint.scores_uc, units.scores_uc)
        and np.array_equal(joint.outputs.scores_b, best_b)
        and all(np.array_equal(a, b) for a, b in zip(answers, entities, strict=True))
        and np.array_equal(joint.certified_b.astype(np.bool_), box()),
        "max_abs_error": error,
    }
    return checks, {
        "segmental_viterbi": host_us(lambda: segmental_decode(units, lengths)),
        "segmental_confidence": host_us(lambda: entity_marginals(units, lengths)),
        "joint box re-decode": host_us(box),
    }
