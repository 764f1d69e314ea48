"""Every variant of a bundle against the eager model: changed entities, and what is certain.

Half graphs run twice: emulated, every half tensor rounded, and as onnxruntime on a CPU computes
them, as a second witness. Radii are the largest errors on the half of the posts that a hash of
their ids chooses; on the other half the box certificate is put to the test.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx

from amlr.benchmarks.data import BenchData, BenchPost, load_data
from amlr.benchmarks.report.figures import markdown_table
from amlr.cli_support import AmlrCommand, log_to_stderr, progress
from amlr.errors import BackendUnavailableError, InputError, ParityError
from amlr.export.eager import EagerProvider, load_reference
from amlr.export.fused import variant as fused
from amlr.export.options import FP16_CUDA
from amlr.export.parity import Answer, ask, compare
from amlr.export.posts import CalibrationPost, strict_f1
from amlr.export.precision.emulate import emulate
from amlr.export.precision.judge import GRAPHS, GraphProvider, session_runner
from amlr.kernels import is_tuning_half
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import Variant
from amlr.runtime.providers.base import Provider, ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import Radii

_PATH = click.Path(path_type=Path)
_PICTURE_NAMES = (".jpg", ".jpeg", ".png", ".webp")
_CHUNK = 64
_WITNESS = "onnxruntime float16"
_log = logging.getLogger("amlr.benchmarks.variants")
EXAMPLES = """\b
Examples:
  python -m amlr.benchmarks.variants --engine amlr.plan --data valid.txt
  python -m amlr.benchmarks.variants --engine amlr.plan --data valid.txt --spread photos/
"""


@click.command(cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", "bundle_path", type=_PATH, required=True, help="Folder of the bundle.")
@click.option("--data", required=True, help="CoNLL file, .jsonl, or `sample` (generated).")
@click.option("--images", type=_PATH, help="Folder of the posts' own pictures.")
@click.option("--spread", type=_PATH, help="Give every other post a picture of this folder.")
@click.option("--only", help="Comma-separated variants; all but fp32 if not given.")
@click.option("--limit", type=int, help="Most posts.")
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "json_path", type=_PATH, help="Write the figures here.")
def main(
    bundle_path: Path,
    data: str,
    images: Path | None,
    spread: Path | None,
    only: str | None,
    limit: int | None,
    threads: int,
    json_path: Path | None,
) -> None:
    """Compare a bundle's variants with the eager model on all posts of a file.

    Exit code 1: a variant that is recorded to change nothing changed an entity, or an answer that
    the certificate cleared was not float32's.
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
        report = measure_variants(bundle, posts, names, threads)
    click.echo(table(report))
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    broken = [row["variant"] for row in report["rows"] if row["broken"]]
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
    bundle: Bundle, data: BenchData, names: Sequence[str], threads: int
) -> dict[str, Any]:
    """All rows of the table; see the module."""
    import torch

    torch.set_num_threads(threads)
    proofs = [
        CalibrationPost(post=item.post, gold=None if item.gold is None else frozenset(item.gold))
        for item in data.posts
    ]
    fp32 = bundle.manifest.variants["fp32"]
    _log.info(f"{len(proofs)} posts, {data.pictures} with a picture: the eager model")
    eager = _answers(bundle, EagerProvider(load_reference(bundle)), fp32, data.posts)
    tuning = is_tuning_half([item.id for item in data.posts])
    rows = []
    for name in names:
        variant = bundle.manifest.variants[name]
        for label, provider in _witnesses(bundle, name, variant, threads):
            _log.info(f"{name}, {label}")
            found = _answers(bundle, provider, variant, data.posts)
            rows.append(
                {
                    "variant": name,
                    "by": label,
                    "islands": variant.parity.get("islands", {}),
                    **_judge(bundle, variant, eager, found, proofs, tuning),
                }
            )
    return {"schema": 1, "data": data.source, "posts": len(proofs), "pictures": data.pictures,
            "rows": rows}  # fmt: skip


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
        emulated = {graph: session_runner(m, threads) for graph, m in rounding.items()}
        yield "emulated float16", GraphProvider(emulated, bundle, name="fp16-emulated")
        plain = {graph: session_runner(model, threads) for graph, model in models.items()}
        yield _WITNESS, GraphProvider(plain, bundle, name="fp16-onnxruntime")
        return
    provider = variant.provider or "onnxruntime-cpu"
    try:
        yield provider, open_provider(provider, bundle, variant, ProviderOptions(threads=threads))
    except BackendUnavailableError as error:
        _log.info(f"{name} left out: {error}")


def _answers(
    bundle: Bundle, provider: Provider, variant: Variant, posts: Sequence[BenchPost]
) -> list[Answer]:
    answers: list[Answer] = []
    with Engine(bundle, provider, variant=variant) as engine:
        for begin in progress(range(0, len(posts), _CHUNK), "batches"):
            answers += ask(engine, [item.post for item in posts[begin : begin + _CHUNK]])
    return answers


def _judge(
    bundle: Bundle,
    variant: Variant,
    eager: Sequence[Answer],
    found: Sequence[Answer],
    proofs: Sequence[CalibrationPost],
    tuning: Any,
) -> dict[str, Any]:
    parity = compare(eager, found)
    f1s = [strict_f1(proofs, side) for side in (eager, found)]
    errors = parity.errors_p2[tuning]
    units, tokens = errors.max(axis=0, initial=0.0).tolist()
    radii = Radii(units=units, tokens=tokens, posts=int(tuning.sum()), steps=0, blocks=frozenset())
    held = [row for row in np.flatnonzero(~tuning).tolist() if found[row].scores is not None]
    scores = [scores for row in held if (scores := found[row].scores) is not None]
    clear = Decoder.of(bundle).certify(scores, [radii] * len(scores))
    changed = np.array([eager[row].entities != found[row].entities for row in held], np.bool_)
    promised = variant.parity.get("changed_entities") == 0
    wrong = int((clear & changed).sum())
    return {
        **parity.to_dict(),
        **({} if None in f1s else {"f1": dict(zip(("fp32", "variant"), f1s, strict=True))}),
        "radii": radii.to_dict(),
        "held_posts": len(held),
        "cleared": int(clear.sum()),
        "held_changed": int(changed.sum()),
        "cleared_and_changed": wrong,
        "broken": bool(wrong or (promised and parity.changed_entities)),
    }


def table(report: dict[str, Any]) -> str:
    """The figures as Markdown."""
    head = (
        "variant", "computed by", "entities changed", "error of logits", "of emissions",
        "radius of units", "of emissions", "held half: cleared", "changed", "cleared and changed",
    )  # fmt: skip
    lines: list[tuple[str, ...]] = []
    islands: list[str] = []
    for row in report["rows"]:
        error, radii = row["max_abs_error"], row["radii"]
        lines.append(
            (
                row["variant"],
                row["by"],
                f"{row['changed_entities']} of {row['entities']:,}",
                f"{error['unit_logits']:.2e}",
                f"{error['emissions']:.2e}",
                f"{radii['units']:.2e}",
                f"{radii['tokens']:.2e}",
                f"{row['cleared']} of {row['held_posts']}",
                str(row["held_changed"]),
                str(row["cleared_and_changed"]),
            )
        )
        if row["by"] != _WITNESS:
            islands += _islands(row)
    counts = f"{report['posts']:,} posts, {report['pictures']:,} with a picture"
    return "\n".join([counts, "", markdown_table(head, lines, words=2), "", *islands])


def _islands(row: dict[str, Any]) -> Iterator[str]:
    for graph, found in row["islands"].items():
        ops = sorted({f"{op} ({reason})" for _, op, reason in found})
        yield f"{row['variant']} {graph}: {len(found)} nodes float32: {', '.join(ops) or 'none'}"


if __name__ == "__main__":
    main()
