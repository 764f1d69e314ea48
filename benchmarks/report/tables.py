"""The tables of a report, and the lines of text that Markdown and page share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from amlr.benchmarks.report.figures import Table, error_text, number, ratio_text
from amlr.benchmarks.report.records import (
    ENGINE_PREFIX,
    HeldRecord,
    HostRow,
    ParityRecord,
    PeerRecord,
    Report,
    Row,
    TierParity,
    is_engine,
)

_BASELINES = ("research", "research-mkl", "openvino")
_ORDER = ("cold", "hit", "text-only", "block", "block-text-only")
_PRECISIONS = ("fp32", "bf16", "int8", "mixed")


def verdict_line(parity: TierParity) -> str:
    """Parity in one sentence."""
    errors = ", ".join(
        f"{name} {'not finite' if error is None else error_text(error)}"
        for name, error in parity.max_abs_error.items()
    )
    apart = parity.undecidable_changed_entities
    more = f", {apart} more in undecidable posts" if apart else ""
    line = (
        f"{parity.verdict.upper()}: {parity.changed_entities} of {parity.entities:,} "
        f"entities changed{more} over {parity.posts:,} posts; largest errors: {errors}"
    )
    return f"{line}; {parity.reason}" if parity.reason else line


def system_name(backend: str, precision: str) -> str:
    """Name of a system in charts; float32 needs no mention."""
    return backend if precision == "fp32" or "bf16" in backend else f"{backend} {precision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """All rows of one system on one workload and batch size, their ratios by baseline.

    Attributes:
        row: Its times.
        ratios: By baseline, how many times as fast.
        precisions: By baseline, the precision it was measured in.
    """

    row: Row
    ratios: dict[str, float | None]
    precisions: dict[str, str]

    @property
    def ms_per_post(self) -> float:
        """Median milliseconds per post; 0 where it is unknown."""
        return (self.row.p50_ms or 0.0) / self.row.batch

    @property
    def is_engine(self) -> bool:
        """Whether the system is the engine."""
        return is_engine(self.row.backend)

    @property
    def name(self) -> str:
        """Name of the system in charts."""
        return system_name(self.row.backend, self.row.precision)


def join_rows(rows: Iterable[Row]) -> list[Line]:
    """One line per workload, batch, system and precision."""
    lines: dict[tuple[str, int, str, str], Line] = {}
    for row in rows:
        key = (row.workload, row.batch, row.backend, row.precision)
        line = lines.setdefault(key, Line(row=row, ratios={}, precisions={}))
        if row.baseline is not None:
            line.ratios[row.baseline] = row.ratio
            line.precisions[row.baseline] = row.baseline_precision or "fp32"
    return list(lines.values())


def speed_table(rows: Iterable[Row]) -> Table:
    """The engine's tiers: tensors to logits, and beside it text and picture file to entities.

    Of several batch sizes the largest counts: what a busy service forms.
    """
    lines: dict[tuple[str, str, str], Line] = {}
    for line in join_rows(rows):
        row = line.row
        plain = row.workload.removeprefix("end-to-end-")
        if not line.is_engine or plain not in _ORDER or not row.p50_ms:
            continue
        key = (row.workload, row.backend, row.precision)
        if key not in lines or row.batch > lines[key].row.batch:
            lines[key] = line
    keys = sorted(
        {(w.removeprefix("end-to-end-"), b, p) for w, b, p in lines},
        key=lambda key: (_ORDER.index(key[0]), _precision_rank(key[2]), key[1]),
    )
    cells = []
    for workload, backend, precision in keys:
        tensors = lines.get((workload, backend, precision))
        whole = lines.get((f"end-to-end-{workload}", backend, precision))
        cells.append(
            [
                *(workload, backend.removeprefix(ENGINE_PREFIX), precision),
                *(_ms(tensors), *(_ratio(tensors, name) for name in _BASELINES)),
                *(_ms(whole), _ratio(whole, "research"), _ratio(whole, "openvino")),
            ]
        )
    head = ("workload", "tier", "precision", "ms a post", "x research", "x MKL",
            "x OpenVINO (in)", "end to end: ms", "x research", "x OpenVINO (in)")  # fmt: skip
    title = "Speed: tensors to logits, then from text and file to entities"
    return Table(title=title, head=head, rows=cells)


def rows_table(rows: Iterable[Row]) -> Table:
    """Every system on every workload."""
    lines = join_rows(rows)
    cells = []
    for line in lines:
        row = line.row
        ratios = ", ".join(
            f"{name} {ratio_text(value)}"
            for name, value in line.ratios.items()
            if value is not None and name != row.backend
        )
        figures = map(number, (row.p50_ms, row.p95_ms, row.p99_ms, row.posts_per_s))
        cells.append([row.workload, row.backend, row.precision, str(row.batch), *figures, ratios])
    head = ("workload", "system", "precision", "batch", "p50 ms", "p95 ms", "p99 ms", "posts/s",
            "times faster than")  # fmt: skip
    mine = [line.is_engine for line in lines]
    return Table(title="Milliseconds a call", head=head, rows=cells, notes=1, mine=mine)


def _precision_rank(precision: str) -> int:
    return _PRECISIONS.index(precision) if precision in _PRECISIONS else len(_PRECISIONS)


def _ms(line: Line | None) -> str:
    return "–" if line is None else number(line.ms_per_post)


def _ratio(line: Line | None, name: str) -> str:
    if line is None or name not in line.ratios:
        return "–"
    text = ratio_text(line.ratios[name])
    return f"{text} ({line.precisions[name]})" if name == "openvino" else text


def precision_table(report: Report) -> Table:
    """What each tier changes, on which posts, and what it takes to run; last the eager model."""
    peers = {(peer.backend, peer.precision): peer for peer in report.peers}
    lines = []
    for tier in report.parity.all_tiers:
        held, f1 = tier.held, tier.f1
        lines.append(
            [
                tier.backend.removeprefix(ENGINE_PREFIX),
                tier.precision,
                f"{tier.changed_entities} of {tier.entities:,}",
                *_held_cells(held),
                *(("–", "–") if f1 is None else (f"{f1.eager:.4f}", f"{f1.engine:.4f}")),
                "–" if held is None else _stages(held.stages),
                *_costs(peers.get((tier.backend, tier.precision))),
            ]
        )
    eager = next((peer for peer in report.peers if peer.backend == "research"), None)
    if eager is not None and eager.peak_memory_mb is not None:
        lines.append(["eager PyTorch", "fp32", *["–"] * 6, *_costs(eager)])
    head = ("tier", "precision", "changed entities", "not calibrated on", "at most", "F1 eager",
            "F1", "answered by", "memory MiB", "load s")  # fmt: skip
    title = "Precision: what it changes, what it takes"
    return Table(title=title, head=head, rows=lines, words=4)


def parity_table(parity: ParityRecord) -> Table:
    """Each tier against the eager model."""
    outputs = list(parity.max_abs_error)
    head = ("tier", "precision", "verdict", "posts", "entities", "changed", "undecidable posts",
            *(f"max error {name}" for name in outputs))  # fmt: skip
    rows = [
        [tier.backend, tier.precision, tier.verdict, f"{tier.posts:,}", f"{tier.entities:,}",
         str(tier.changed_entities), str(tier.undecidable_posts),
         *(error_text(tier.max_abs_error[name]) for name in outputs)]
        for tier in parity.all_tiers
    ]  # fmt: skip
    return Table(title="Tiers", head=head, rows=rows)


def systems_table(peers: Sequence[PeerRecord]) -> Table:
    """Who took part, who could not and why."""
    rows = [
        [peer.backend, peer.precision, peer.about,
         peer.status + (f": {peer.reason}" if peer.reason else ""), error_text(peer.max_abs_error)]
        for peer in peers
    ]  # fmt: skip
    head = ("system", "precision", "what it is", "status", "largest error")
    return Table(title="Who took part", head=head, rows=rows, words=4)


def _held_cells(held: HeldRecord | None) -> list[str]:
    if held is None:
        return ["–", "–"]
    changed = f"{held.changed_entities} of {held.entities:,}, {held.posts:,} posts"
    bound = held.change_bound
    return [changed, "–" if bound is None else f"{100 * bound:.2g} % of posts"]


def _stages(stages: dict[str, int]) -> str:
    total = sum(stages.values())
    if len(stages) < 2 or not total:
        return "–"
    ordered = sorted(stages.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in ordered)


def _costs(peer: PeerRecord | None) -> list[str]:
    if peer is None:
        return ["–", "–"]
    return [number(peer.peak_memory_mb), number(peer.load_cpu_s)]


def auto_lines(report: Report) -> list[str]:
    """What `auto` took on this host, and why."""
    auto = report.engine.auto
    if auto is None:
        return []
    # The first part of a reason says why; what follows says how to change it.
    reasons = [reason.split(";")[0] for reason in auto.reasons]
    return [
        f"precision=auto serves {auto.provider} {auto.precision}:",
        *reasons,
        *(
            f"  on record for {record.variant}: {record.changed_entities} of "
            f"{record.entities:,} entities changed over {record.posts:,} posts"
            for record in auto.variants
            if record.entities
        ),
    ]


def host_table(rows: Sequence[HostRow]) -> Table:
    """The host's own cost by stages."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages_us))
    # Pictures come before what is done with them.
    if "pictures" in stages:
        stages.remove("pictures")
        stages.insert(stages.index("batch"), "pictures")
    head = ["post", "text caches", "posts a call", "all", *stages, "certificate"]
    cells = [
        [
            *(row.kind, row.state, str(row.batch), number(row.us_per_post)),
            *(number(row.stages_us.get(stage)) for stage in stages),
            number(row.certificate_us),
        ]
        for row in rows
    ]
    lead = (
        "Processor time of a call, in microseconds a post, whose engine answers at once. Text "
        "caches: cold knew nothing, warm knew other posts, repeated these posts. Certificates come "
        "on top where they are asked for."
    )
    return Table(title="What the host costs", lead=lead, head=head, rows=cells, words=2)
