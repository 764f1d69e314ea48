"""Joint decoding on the device: an engine's raw outputs to entities, as a provider does it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from amlr.kernels import Units, joint_scores
from amlr.kernels.cuda import DeviceWork
from amlr.kernels.launch import KernelLibrary
from amlr.kernels.launch_segmental import JointInputs, SegmentalKernels, UnitTable, Winner

LABELS = ("PER", "LOC", "ORG", "OTHER")
# Not in the labels' order, with tags that play no part, as an imported checkpoint has them.
TAGS = ("[CLS]", "I-LOC", "B-OTHER", "O", "B-PER", "I-PER", "B-LOC", "X", "B-ORG", "I-ORG",
        "I-OTHER", "[SEP]", "PAD")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JointCase:
    """Raw outputs of an engine, in its own row order, and the units that the reference builds."""

    expected: Units
    lengths_b: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]
    logit_rows_u: npt.NDArray[np.int32]
    emissions: npt.NDArray[np.float32]
    emission_rows_w: npt.NDArray[np.int32]
    word_emissions_wy: npt.NDArray[np.float32]
    word_offsets: npt.NDArray[np.int64]
    bias: float
    weight: float
    tags: tuple[str, ...] = TAGS
    labels: tuple[str, ...] = LABELS

    @property
    def unit_of(self) -> dict[tuple[int, int, int], int]:
        """Unit of each (post, start, end)."""
        units, found = self.expected, {}
        for post in range(len(self.lengths_b)):
            for u in range(int(units.post_offsets[post]), int(units.post_offsets[post + 1])):
                found[post, int(units.start_u[u]), int(units.end_u[u])] = u
        return found


def joint_case(seed: int, *, weight: float = 0.7) -> JointCase:
    """A batch of posts; some runs of words have no unit and are scored by emissions alone."""
    rng = np.random.default_rng(seed)
    lengths = np.array([13, 1, 21, 10])
    spans, offsets = [], [0]
    for length in lengths:
        spans += [
            (start, end)
            for end in range(length)
            for start in range(max(0, end - 3), end + 1)
            if rng.random() < 0.8
        ]
        offsets.append(len(spans))
    start, end = np.array(spans).T
    word_offsets = np.concatenate([[0], np.cumsum(lengths)])
    # The engine's rows: other rows in between, and in another order.
    logits = (2 * rng.standard_normal((len(spans) + 9, 1 + len(LABELS)))).astype(np.float32)
    rows = rng.permutation(len(logits))[: len(spans)]
    emissions = rng.standard_normal((int(word_offsets[-1]) + 11, len(TAGS))).astype(np.float32)
    emission_rows = rng.permutation(len(emissions))[: word_offsets[-1]]
    word_emissions = emissions[emission_rows]
    expected = joint_scores(
        post_offsets=np.array(offsets),
        start_u=start,
        end_u=end,
        unit_logits_uc=logits[rows],
        bias=1.3,
        weight=weight,
        word_offsets=word_offsets,
        word_emissions_wy=word_emissions,
        tags=TAGS,
        labels=LABELS,
        max_entity_words=6,
    )
    row_of = {
        (post, *span): int(rows[u])
        for post in range(len(lengths))
        for u, span in enumerate(spans)
        if offsets[post] <= u < offsets[post + 1]
    }
    posts = np.repeat(np.arange(len(lengths)), np.diff(expected.post_offsets))
    logit_rows = [
        row_of.get((int(post), int(first), int(last)), -1)
        for post, first, last in zip(posts, expected.start_u, expected.end_u, strict=True)
    ]
    return JointCase(
        expected=expected,
        lengths_b=lengths,
        logits=logits,
        logit_rows_u=np.array(logit_rows, np.int32),
        emissions=emissions,
        emission_rows_w=emission_rows.astype(np.int32),
        word_emissions_wy=word_emissions,
        word_offsets=word_offsets,
        bias=1.3,
        weight=weight,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class JointResult:
    """Everything that came back from the device."""

    scores_uc: npt.NDArray[np.float32]
    scores_b: npt.NDArray[np.float32]
    entities: list[npt.NDArray[np.int32]]
    owner_w: npt.NDArray[np.int32]
    worst_uc: npt.NDArray[np.float64]
    certified_b: npt.NDArray[np.bool_]
    unit_of: dict[tuple[int, int, int], int]


def run_joint(
    library: KernelLibrary,
    case: JointCase,
    radii_b2: npt.NDArray[np.float64] | None = None,
) -> JointResult:
    """Scores, decoding and certificate in one go: one wait, at the end."""
    units = case.expected
    kernels = SegmentalKernels(library, tags=len(case.tags))
    with library.device.current():
        work = DeviceWork(library.device)
        try:
            radii = np.zeros((len(case.lengths_b), 2)) if radii_b2 is None else radii_b2
            return _run(kernels, work, units, case, work.put(radii))
        finally:
            work.close()


def _run(
    kernels: SegmentalKernels,
    work: DeviceWork,
    units: Units,
    case: JointCase,
    radii: int,
) -> JointResult:
    posts, count = len(case.lengths_b), len(units.start_u)
    plain = work.table(units, case.lengths_b)
    table = UnitTable(
        post_offsets=plain.post_offsets,
        start=plain.start,
        end=plain.end,
        lengths=plain.lengths,
        posts=posts,
        units=count,
        classes=len(case.labels),
        max_words=plain.max_words,
        word_offsets=work.put(case.word_offsets.astype(np.int64)),
    )
    columns = [case.tags.index("O")]
    columns += [case.tags.index(f"{kind}-{label}") for kind in "BI" for label in case.labels]
    inputs = JointInputs(
        logit_rows=work.put(case.logit_rows_u),
        logits=work.put(case.logits),
        emission_rows=work.put(case.emission_rows_w),
        emissions=work.put(case.emissions),
        columns=work.put(np.array(columns, np.int32)),
        bias=case.bias,
        weight=case.weight,
    )
    host: dict[str, npt.NDArray[Any]] = {
        "scores_uc": np.zeros(units.scores_uc.shape, np.float32),
        "counts": np.zeros(posts, np.int32),
        "chosen": np.zeros((count, 2), np.int32),
        "choice": np.zeros(count, np.int32),
        "scores": np.zeros(posts, np.float32),
        "owner": np.zeros(len(case.word_emissions_wy), np.int32),
        "worst": np.zeros(units.scores_uc.shape, np.float64),
        "certified": np.zeros(posts, np.int32),
    }
    at = {name: work.room(array) for name, array in host.items() if name != "chosen"}
    at["chosen"] = work.put(host["chosen"])  # the kernel writes chosen units only
    outputs = ("counts", "chosen", "choice", "scores", "owner")
    winner = Winner(**{name: at[name] for name in outputs})
    stream = work.stream
    kernels.joint_scores(stream, table, inputs, scores=at["scores_uc"])
    kernels.decode(stream, table, winner, scores=at["scores_uc"])
    kernels.joint_box_scores(
        stream,
        table,
        inputs,
        winner,
        radii=radii,
        worst=at["worst"],
    )
    kernels.certify(stream, table, winner, worst=at["worst"], certified=at["certified"])
    work.fetch(*((host[name], at[name]) for name in host))
    entities = []
    for first, chosen in zip(units.post_offsets[:-1], host["counts"], strict=True):
        unit, label = host["chosen"][first : first + chosen].T
        entities.append(np.stack([units.start_u[unit], units.end_u[unit], label], 1))
    return JointResult(
        scores_uc=host["scores_uc"],
        scores_b=host["scores"],
        entities=entities,
        owner_w=host["owner"],
        worst_uc=host["worst"],
        certified_b=host["certified"].astype(np.bool_),
        unit_of=case.unit_of,
    )
