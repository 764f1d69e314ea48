"""Every low precision of a bundle against the eager model: what changes, and what is certified.

    python -m amlr.benchmarks.variants --engine amlr.plan --data posts.jsonl --spread photos/

Each variant answers all posts alone. Half graphs run twice: emulated, every half tensor rounded,
and as onnxruntime on a CPU computes them, as a second witness. Where the bundle holds radii, the
certificate is tried on those answers, and the engine that certifies (`bf16+fp32`) answers as well.
"Changed" means what it means in `amlr.export.parity`.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import click
import onnx

from amlr.benchmarks.data import BenchData, load_data
from amlr.benchmarks.report.figures import markdown_table
from amlr.cli_support import AmlrCommand, log_to_stderr, progress
from amlr.errors import AmlrError, BackendUnavailableError, InputError, ParityError
from amlr.export.eager import EagerProvider, load_reference
from amlr.export.fused import variant as fused
from amlr.export.options import FP16_CUDA
from amlr.export.parity import (
    Answer,
    Doubles,
    ask,
    change_bound,
    compare,
    count_changes,
    entity_keys,
    leads,
)
from amlr.export.precision.emulate import emulate
from amlr.export.precision.judge import GRAPHS, GraphProvider, session_runner
from amlr.runtime.bundle import Bundle
from amlr.runtime.certified import EXACT, LOW, MIDDLE, Certified
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import PICTURE, TEXT, Radii, calibrated_radii
from amlr.runtime.results import Post, Result
from amlr.runtime.sentinel import UNDECIDABLE

_PATH = click.Path(path_type=Path)
_PICTURE_NAMES = (".jpg", ".jpeg", ".png", ".webp")
_CHUNK = 64
_log = logging.getLogger("amlr.benchmarks.variants")
EXAMPLES = """\b
Examples:
  python -m amlr.benchmarks.variants --engine amlr.plan --data valid.txt
  python -m amlr.benchmarks.variants --engine amlr.plan --data valid.txt --only fp16
  python -m amlr.benchmarks.variants --engine amlr.plan --data valid.txt --spread photos/
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRow:
    """One tier on all posts.

    Attributes:
        tier: Name of a variant, or the precisions of an engine that certifies.
        by: What computed it.
        promised: Whether the tier is said to change no entity.
        entities: Of the eager model.
        changed_entities: Entities that differ on posts with a clear answer.
        undecidable: Changed posts whose eager answer leads by less than float32 noise.
        certified: Answers that low precision gave and the certificate cleared.
        on_picture: Answers cleared in float32 on the low-precision picture.
        climbed: Posts that were computed in float32 altogether.
        certified_changed: Cleared answers whose entities changed.
        covered: Posts that the bundle's radii hold for.
        beyond: Of these, posts with an error beyond its radius.
        max_abs_error: Of each raw output; empty for an engine, which gives answers alone.
    """

    tier: str
    by: str
    promised: bool
    posts: int
    entities: int
    changed_entities: int
    undecidable: int
    certified: int
    on_picture: int
    climbed: int
    certified_changed: int
    covered: int = 0
    beyond: int = 0
    max_abs_error: dict[str, float] = field(default_factory=dict)

    @property
    def is_broken(self) -> bool:
        """Whether a promise did not hold."""
        return bool(self.certified_changed or (self.promised and self.changed_entities))


@click.command(cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", "bundle_path", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--data", required=True, help="CoNLL file, .jsonl, or `sample` (generated).")
@click.option("--images", type=_PATH, help="Folder of the posts' own pictures.")
@click.option("--spread", type=_PATH, help="Give every other post a picture of this folder.")
@click.option("--only", help="Comma-separated variants; all but fp32 if not given.")
@click.option("--radii", "factor", default=1.0, show_default=True, help="Factor on the radii.")
@click.option("--limit", type=int, help="Most posts.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "json_path", type=_PATH, help="Write the figures here.")
def main(
    bundle_path: Path,
    data: str,
    images: Path | None,
    spread: Path | None,
    only: str | None,
    factor: float,
    limit: int | None,
    threads: int,
    json_path: Path | None,
) -> None:
    """Compare a bundle's low precisions with the eager model on all posts of a file.

    Exit code 1: a variant that is recorded to change nothing changed an entity, or a certified
    answer is not float32's.
    """
    bundle = Bundle.open(bundle_path)
    posts = load_data(data, images, limit, 512)
    if spread is not None:
        posts = spread_pictures(posts, spread)
    names = [name for name in bundle.manifest.variants if name != "fp32"]
    if only is not None:
        names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in bundle.manifest.variants]
    if unknown or not names:
        raise InputError(
            f"{bundle_path} has no variant {unknown[0] if unknown else 'besides fp32'}; "
            "add one: amlr-export --from BUNDLE --precision fp16,int8"
        )
    with log_to_stderr("amlr.benchmarks"):
        rows = measure_variants(bundle, posts, names, threads, factor)
    click.echo(f"{len(posts.posts):,} posts, {posts.pictures:,} with a picture\n\n{table(rows)}")
    certified = sum(row.certified + row.on_picture for row in rows)
    if not any(row.certified_changed for row in rows):
        bound = change_bound(0, certified)
        click.echo(f"\n0 of {certified} certified answers changed: at most {bound:.1e} at 95 %")
    if json_path is not None:
        report = {"schema": 2, "data": posts.source, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    broken = dict.fromkeys(row.tier for row in rows if row.is_broken)
    if broken:
        raise ParityError(f"{', '.join(broken)}: not what the bundle's record promises")


def spread_pictures(data: BenchData, folder: Path) -> BenchData:
    """Give every other post a picture of a folder, in turn.

    Raises:
        InputError: The folder holds no picture.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURE_NAMES)
    if not files:
        raise InputError(f"no pictures in {folder}")
    posts = [
        replace(item, post=replace(item.post, image=files[i // 2 % len(files)]))
        if i % 2 == 0
        else item
        for i, item in enumerate(data.posts)
    ]
    return replace(data, posts=tuple(posts))


def measure_variants(
    bundle: Bundle, data: BenchData, names: Sequence[str], threads: int, factor: float = 1.0
) -> list[TierRow]:
    """Rows of some variants, and of the engines that certify with them.

    Args:
        bundle: The bundle.
        data: Posts, best none of the calibration's.
        names: Variants.
        threads: CPU threads.
        factor: On the bundle's radii: large ones certify nothing, small ones everything.
    """
    import torch

    torch.set_num_threads(threads)
    posts = [item.post for item in data.posts]
    _log.info(f"{len(posts)} posts, {data.pictures} with a picture: the eager model")
    fp32 = bundle.manifest.variants["fp32"]
    eager = _answers(bundle, EagerProvider(load_reference(bundle)), fp32, posts)
    lead_of = leads(eager, bundle)
    rows: list[TierRow] = []
    certifying: set[str] = set()
    for name in names:
        variant = bundle.manifest.variants[name]
        radii = _scaled(calibrated_radii(variant.parity), factor)
        for label, provider in _witnesses(bundle, name, variant, threads):
            _log.info(f"{name}, {label}")
            answers = _answers(bundle, provider, variant, posts)
            row = _alone(bundle, eager, lead_of, answers, radii)
            promised = variant.parity.get("changed_entities") == 0
            rows.append(replace(row, tier=name, by=label, promised=promised))
        if radii:
            certifying.add(variant.precision)
    for precision in sorted(certifying):
        rows += _certifying(bundle, f"{precision}+fp32", eager, lead_of, posts, threads, factor)
    return rows


def _scaled(radii: Mapping[str, Radii], factor: float) -> dict[str, Radii]:
    return {
        kind: replace(r, units=factor * r.units, tokens=factor * r.tokens)
        for kind, r in radii.items()
    }


def _witnesses(
    bundle: Bundle, name: str, variant: Variant, threads: int
) -> Iterator[tuple[str, Provider]]:
    if variant.precision == "fp16":
        models = {graph: onnx.load(str(bundle.graph_path(variant, graph))) for graph in GRAPHS}
        if name == FP16_CUDA:
            # Its operators round inside, which only their own twins can show.
            rounding = fused.emulated(fused.read_parts(bundle))
        else:
            rounding = {graph: emulate(model) for graph, model in models.items()}
        for label, graphs in (("emulated float16", rounding), ("onnxruntime float16", models)):
            runs = {graph: session_runner(model, threads) for graph, model in graphs.items()}
            yield label, GraphProvider(runs, bundle, name=label)
        return
    provider = variant.provider or "onnxruntime-cpu"
    try:
        yield provider, open_provider(provider, bundle, variant, ProviderOptions(threads=threads))
    except BackendUnavailableError as error:
        _log.info(f"{name} left out: {error}")


def _answers(
    bundle: Bundle, provider: Provider, variant: Variant, posts: Sequence[Post]
) -> list[Answer]:
    answers: list[Answer] = []
    with Engine(bundle, provider, variant=variant) as engine:
        for begin in progress(range(0, len(posts), _CHUNK), "batches"):
            answers += ask(engine, posts[begin : begin + _CHUNK])
    return answers


def _alone(
    bundle: Bundle,
    eager: Sequence[Answer],
    lead_of: Doubles,
    answers: Sequence[Answer],
    radii: Mapping[str, Radii],
) -> TierRow:
    """A variant that gives all answers; the certificate is tried on them."""
    allowed: dict[int, Radii] = {}
    for i, (wanted, answer) in enumerate(zip(eager, answers, strict=True)):
        of_kind = radii.get(PICTURE if wanted.image_used else TEXT)
        if of_kind and answer.scores is not None and of_kind.covers(answer.scores.encoded):
            allowed[i] = of_kind
    scored = [answers[i].scores for i in allowed]
    cleared = Decoder.of(bundle).certify([s for s in scored if s], list(allowed.values()))
    stages = [""] * len(answers)
    for i, is_certified in zip(allowed, cleared, strict=True):
        stages[i] = LOW if is_certified else ""
    errors_p2 = compare(eager, answers).errors_p2
    beyond = [bool((errors_p2[i] > [r.units, r.tokens]).any()) for i, r in allowed.items()]
    row = _row(eager, lead_of, answers, stages)
    return replace(row, covered=len(allowed), beyond=sum(beyond))


def _certifying(
    bundle: Bundle,
    precision: str,
    eager: Sequence[Answer],
    lead_of: Doubles,
    posts: Sequence[Post],
    threads: int,
    factor: float,
) -> Iterator[TierRow]:
    """The engine of two precisions, where it runs here; it gives answers without scores."""
    try:
        loaded = Engine.load(bundle.path, precision=precision, threads=threads, sentinel=0.0)
    except AmlrError as error:
        _log.info(f"{precision} left out: {error}")
        return
    with loaded as engine:
        _log.info(f"{precision}: {engine.choice.reason}")
        if not isinstance(engine.strategy, Certified):
            return
        engine.strategy.radii = _scaled(engine.strategy.radii, factor)
        results: list[Result] = []
        for begin in progress(range(0, len(posts), _CHUNK), "batches"):
            results += engine.tag_batch(posts[begin : begin + _CHUNK])
        by = engine.provider
    answers = [
        Answer(
            scores=None,
            entities=entity_keys(result.entities),
            failed="" if result.error is None else result.error["message"],
        )
        for result in results
    ]
    without = [replace(answer, scores=None) for answer in eager]
    row = _row(without, lead_of, answers, [_stage(result, precision) for result in results])
    yield replace(row, tier=precision, by=by, promised=True, max_abs_error={})


def _stage(result: Result, both: str) -> str:
    """What gave an answer; a post without words has the same one everywhere."""
    if result.certified:
        return MIDDLE if result.precision == both else LOW
    return EXACT if result.precision == "fp32" else ""


def _row(
    eager: Sequence[Answer], lead_of: Doubles, answers: Sequence[Answer], stages: Sequence[str]
) -> TierRow:
    """What changed, and what gave the answers: `LOW` and `MIDDLE` are certified."""
    parity = compare(eager, answers)
    tied = {i for i in parity.changed if lead_of[i] <= UNDECIDABLE}
    in_ties = sum(count_changes(eager[i].entities, answers[i].entities) for i in tied)
    counts = Counter(stages)
    return TierRow(
        tier="",
        by="",
        promised=False,
        posts=parity.posts,
        entities=parity.entities,
        changed_entities=parity.changed_entities - in_ties,
        undecidable=len(tied),
        certified=counts[LOW],
        on_picture=counts[MIDDLE],
        climbed=counts[EXACT],
        certified_changed=sum(stages[i] in (LOW, MIDDLE) for i in {*parity.changed} - tied),
        max_abs_error=parity.max_abs_error,
    )


def table(rows: Sequence[TierRow]) -> str:
    """The rows as Markdown."""
    head = ("tier", "computed by", "entities changed", "undecidable posts", "error of logits",
            "of emissions", "like the calibration", "beyond the radii", "certified",
            "on its picture", "in float32", "certified and changed")  # fmt: skip
    lines = [
        (
            *(row.tier, row.by, f"{row.changed_entities} of {row.entities:,}"),
            str(row.undecidable),
            *(f"{error:.2e}" for error in row.max_abs_error.values()),
            *("–" for _ in range(2 - len(row.max_abs_error))),
            *map(str, (row.covered, row.beyond, row.certified, row.on_picture, row.climbed)),
            str(row.certified_changed),
        )
        for row in rows
    ]
    return markdown_table(head, lines, words=2)


if __name__ == "__main__":
    main()
