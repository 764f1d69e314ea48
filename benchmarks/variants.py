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
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import onnx

from amlr.benchmarks.data import BenchData, load_data, relabelled
from amlr.benchmarks.parity import Reference, TierAnswers, ask_alone, judge
from amlr.benchmarks.report.figures import Table, error_text
from amlr.benchmarks.report.records import TierParity
from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import AmlrError, BackendUnavailableError, InputError, ParityError
from amlr.export.eager import EagerProvider, load_reference
from amlr.export.fused import variant as fused
from amlr.export.options import FP16_CUDA
from amlr.export.parity import OUTPUTS, change_bound, compare
from amlr.export.precision.emulate import emulate
from amlr.export.precision.graph_tools import session_runner
from amlr.export.precision.judge import GRAPHS, GraphProvider
from amlr.runtime.bundle import Bundle
from amlr.runtime.certified import Certified
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import PICTURE, TEXT, Radii, calibrated_radii
from amlr.runtime.sentinel import UNDECIDABLE

_PATH = click.Path(path_type=Path)
_PICTURE_NAMES = (".jpg", ".jpeg", ".png", ".webp")
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
        parity: Against the eager model; `backend` is what computed it, `precision` the variant or
            the precisions of an engine that certifies.
        certified: Answers that low precision gave and the certificate cleared.
        on_picture: Answers cleared in float32 on the low-precision picture.
        climbed: Posts that were computed in float32 altogether.
        certified_changed: Cleared answers, of those with a clear lead, whose entities changed.
        covered: Posts that the bundle's radii hold for.
        beyond: Of these, posts with an error beyond its radius.
    """

    parity: TierParity
    certified: int
    on_picture: int = 0
    climbed: int = 0
    certified_changed: int
    covered: int = 0
    beyond: int = 0

    @property
    def is_broken(self) -> bool:
        """Whether a promise did not hold."""
        parity = self.parity
        return bool(self.certified_changed or (parity.promised and parity.changed_entities))


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
    for row in rows:
        certified = row.certified + row.on_picture
        if certified and not row.certified_changed:
            click.echo(
                f"\n{row.parity.precision}, {row.parity.backend}: 0 of {certified} certified "
                f"answers changed: at most {change_bound(0, certified):.1e} at 95 %"
            )
    if json_path is not None:
        report = {"schema": 2, "data": posts.source, "rows": [asdict(row) for row in rows]}
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    broken = dict.fromkeys(row.parity.precision for row in rows if row.is_broken)
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
    posts = relabelled(data.posts, bundle.manifest.labels)
    _log.info(f"{len(posts)} posts, {data.pictures} with a picture: the eager model")
    with Engine(bundle, EagerProvider(load_reference(bundle))) as engine:
        reference = Reference.of(engine, posts)
    rows: list[TierRow] = []
    certifying: set[str] = set()
    for name in names:
        variant = bundle.manifest.variants[name]
        radii = _scaled(calibrated_radii(variant.parity), factor)
        for label, provider in _witnesses(bundle, name, variant, threads):
            _log.info(f"{name}, {label}")
            with Engine(bundle, provider, variant=variant) as engine:
                rows.append(_alone(engine, reference, radii, name, label))
        if radii:
            certifying.add(variant.precision)
    for precision in sorted(certifying):
        rows += _certifying(bundle, f"{precision}+fp32", reference, threads, factor)
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


def _alone(
    engine: Engine, reference: Reference, radii: Mapping[str, Radii], name: str, by: str
) -> TierRow:
    """A variant that gives all answers; the certificate is tried on them."""
    eager, answers = reference.answers, ask_alone(engine, reference.posts)
    allowed: dict[int, Radii] = {}
    for i, (wanted, answer) in enumerate(zip(eager, answers, strict=True)):
        of_kind = radii.get(PICTURE if wanted.image_used else TEXT)
        if of_kind and answer.scores is not None and of_kind.covers(answer.scores.encoded):
            allowed[i] = of_kind
    scored = [scores for i in allowed if (scores := answers[i].scores) is not None]
    cleared = Decoder.of(engine.bundle).certify(scored, list(allowed.values()))
    certified = dict(zip(allowed, cleared.tolist(), strict=True))
    errors_p2 = compare(eager, answers).errors_p2
    variant = engine.manifest.variants[name]
    tier = TierAnswers(
        answers=answers,
        stages=[variant.precision] * len(answers),
        certified=[certified.get(i, False) for i in range(len(answers))],
    )
    promised = variant.parity.get("changed_entities") == 0
    return TierRow(
        parity=judge(
            reference, tier, backend=by, precision=name, tolerance=None, promised=promised
        ),
        certified=sum(tier.certified),
        certified_changed=_certified_changed(reference, tier),
        covered=len(allowed),
        beyond=sum(bool((errors_p2[i] > [r.units, r.tokens]).any()) for i, r in allowed.items()),
    )


def _certifying(
    bundle: Bundle, precision: str, reference: Reference, threads: int, factor: float
) -> Iterator[TierRow]:
    """The engine of two precisions, where it runs here."""
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
        tier = TierAnswers.of(engine, reference.posts)
        stages = Counter(zip(tier.stages, tier.certified, strict=True))
        on_picture = stages[precision, True]
        yield TierRow(
            parity=judge(
                reference, tier, backend=engine.provider, precision=precision, tolerance=None
            ),
            certified=sum(tier.certified) - on_picture,
            on_picture=on_picture,
            climbed=stages["fp32", False],
            certified_changed=_certified_changed(reference, tier),
        )


def _certified_changed(reference: Reference, tier: TierAnswers) -> int:
    rows = zip(reference.answers, tier.answers, tier.certified, reference.leads, strict=True)
    return sum(
        is_certified and lead > UNDECIDABLE and before.entities != after.entities
        for before, after, is_certified, lead in rows
    )


def table(rows: Sequence[TierRow]) -> str:
    """The rows as Markdown."""
    head = ("tier", "computed by", "entities changed", "in undecidable posts", "error of logits",
            "of emissions", "like the calibration", "beyond the radii", "certified",
            "on its picture", "in float32", "certified and changed")  # fmt: skip
    lines = [
        (
            *(row.parity.precision, row.parity.backend),
            f"{row.parity.changed_entities} of {row.parity.entities:,}",
            str(row.parity.undecidable_changed_entities),
            *(error_text(row.parity.max_abs_error[name]) for name in OUTPUTS),
            *map(str, (row.covered, row.beyond, row.certified, row.on_picture, row.climbed)),
            str(row.certified_changed),
        )
        for row in rows
    ]
    return Table(head=head, rows=lines, words=2).markdown()


if __name__ == "__main__":
    main()
