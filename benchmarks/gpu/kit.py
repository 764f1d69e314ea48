"""Fill the kit at home: `python -m amlr.benchmarks.gpu.kit --out .kit ...`.

A part a bundle: `plan/`, its files compressed, `posts.jsonl`, `images/`, and `reference.npz` and
`entities.json`, the answers of onnxruntime on this machine's CPU in float32.
"""

import io
import json
import logging
import lzma
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from amlr.benchmarks.gpu.context import Context
from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import ExportError, InputError
from amlr.runtime.bundle import Bundle, read_manifest
from amlr.runtime.engine import Engine
from amlr.runtime.manifest import MANIFEST, REFERENCE, TOKENIZER
from amlr.runtime.results import Post

if TYPE_CHECKING:  # a kit is unpacked where nothing is trained
    from amlr.training.checkpoint import Checkpoint

# Of a trained bundle's posts half must be enough to certify texts (150).
PAPER_POSTS, PAPER_PICTURES, SMALL_POSTS = 64, 8, 320
# What travels in one go, beside the source tree, to machines that take 64 MiB at a time.
CALL_MIB = 56.0
_CHUNK = 1 << 20
_log = logging.getLogger("amlr.benchmarks.gpu.kit")

EXAMPLES = """\b
Examples (at home, with the train and export extras):
  amlr-train --preset paper --random --out paper.pt
  amlr-export --ckpt paper.pt --out paper.plan
  pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
      --platform manylinux_2_28_x86_64 -d wheels onnxruntime-gpu==1.31.1
  pip download --no-deps -d wheels pytorch-crf==0.7.2
  python -m amlr.benchmarks.gpu.kit --out .kit --wheels wheels --paper paper.plan
  python -m amlr.benchmarks.gpu.kit --out .kit --small small.plan --posts valid.txt
  python -m amlr.benchmarks.gpu.kit --out .kit --kernels             (from a checkout)
"""
FilePath = click.Path(path_type=Path)


def add_part(part: Path, plan: Path, posts: Sequence[Post]) -> None:
    """Pack one bundle.

    Raises:
        ExportError: It finds no entity in the posts.
    """
    shutil.rmtree(part, ignore_errors=True)
    manifest = Bundle.open(plan).manifest
    names = [*manifest.files, MANIFEST]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(lambda name: _compress(plan / name, part / "plan" / f"{name}.xz"), names))
    _write_posts(part, posts, manifest.image.size)
    _check(part, part.with_name(f".{part.name}.check"))


def unpack_part(part: Path, plan: Path) -> None:
    """Make a part's bundle again; its manifest comes last, because without it it counts as absent.

    Raises:
        LZMAError: A file is damaged.
    """
    shutil.rmtree(plan, ignore_errors=True)
    packed = part / "plan"
    names = [path.relative_to(packed).with_suffix("") for path in packed.rglob("*.xz")]
    others = [name for name in names if name != Path(MANIFEST)]
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(lambda name: _extract(packed / f"{name}.xz", plan / name), others))
    _extract(packed / f"{MANIFEST}.xz", plan / MANIFEST)


def is_unpacked(part: Path, plan: Path) -> bool:
    """Whether a bundle is the one that a part holds."""
    packed, manifest = part / "plan" / f"{MANIFEST}.xz", plan / MANIFEST
    return manifest.is_file() and lzma.decompress(packed.read_bytes()) == manifest.read_bytes()


def _compress(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as content, lzma.open(target, "wb", preset=2) as file:
        shutil.copyfileobj(content, file, _CHUNK)


def _extract(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(source) as content, target.open("wb") as file:
        shutil.copyfileobj(content, file, _CHUNK)


def _write_posts(part: Path, posts: Sequence[Post], size: int) -> None:
    """Posts and pictures; pictures at the model's size, so that no library resizes them again."""
    from PIL import Image

    images: dict[bytes, str] = {}
    (part / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for post in posts:
        name = ""
        if isinstance(post.image, bytes | Path):
            content = post.image if isinstance(post.image, bytes) else post.image.read_bytes()
            if content not in images:
                images[content] = f"{len(images)}.png"
                with Image.open(io.BytesIO(content)) as picture:
                    small = picture.convert("RGB").resize((size, size))
                small.save(part / "images" / images[content], optimize=True)
            name = images[content]
        words = None if post.words is None else [[int(s), int(e)] for s, e in post.words]
        rows.append(json.dumps({"text": post.text, "image": name, "words": words}))
    (part / "posts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _check(part: Path, aside: Path) -> None:
    """Make the bundle from the part alone, and let it answer the posts."""
    plan = aside / f"{part.name}.plan"
    try:
        unpack_part(part, plan)
        posts = Context(kit=part.parent, work=aside, out=aside).posts(part.name)
        with Engine.load(plan, provider="onnxruntime-cpu", precision="exact") as engine:
            raws, answers = engine.raw(posts), engine.tag_batch(posts)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    arrays: dict[str, Any] = {}
    for number, raw in enumerate(raws):
        arrays[f"{number}.unit_logits"] = raw.unit_logits
        arrays[f"{number}.emissions"] = raw.emissions
    np.savez_compressed(part / "reference.npz", **arrays)
    entities = [[[e.start, e.end, e.label] for e in answer.entities] for answer in answers]
    if not any(entities):
        raise ExportError(f"{part.name} finds no entity in its posts; it would test nothing")
    (part / "entities.json").write_text(json.dumps(entities), encoding="utf-8")


def shrunk_checkpoint(plan: Path, posts: Sequence[Post]) -> "Checkpoint":
    """The model of a bundle in values that compress well.

    Matrices are rounded to float8 (e5m2); every such value is a float16 as well, so variants of
    half precision lose nothing more. Embeddings of tokens that the posts do not hold are zero.
    """
    import torch

    from amlr.export.eager import load_reference
    from amlr.training.checkpoint import Checkpoint

    bundle = Bundle.open(plan)
    manifest, model = bundle.manifest, load_reference(bundle)
    encoded = bundle.encoder.encode([(post.text, post.words) for post in posts])
    used = [*chain.from_iterable(w.input_ids_t.tolist() for e in encoded for w in e.windows)]
    with torch.no_grad():
        words = model.text.encoder.get_input_embeddings().weight
        unused = torch.ones(len(words), dtype=torch.bool)
        unused[used] = False
        words[unused] = 0.0
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(parameter.to(torch.float8_e5m2).float())
    return Checkpoint(
        config=model.config,
        weights=model.state_dict(),
        tokenizer_json=(plan / TOKENIZER).read_text(encoding="utf-8"),
        token_ids=manifest.token_ids,
        text=manifest.text,
        image=manifest.image,
        decoder=manifest.decoder,
        provenance={"from": manifest.name},
    )


def shrink_bundle(
    plan: Path, posts: Sequence[Post], out: Path, *, calib: Path | None, images: Path | None
) -> None:
    """Export `shrunk_checkpoint` with the variants of the bundle it comes from.

    Args:
        plan: The bundle.
        posts: What the kit will hold.
        out: Bundle to write.
        calib: File of these posts; radii are measured on them, so that float16 can be certified.
        images: Folder of their pictures.
    """
    from amlr.export.options import ExportOptions
    from amlr.export.pipeline import export_checkpoint
    from amlr.training.checkpoint import save_checkpoint

    precisions = tuple(Bundle.open(plan).manifest.variants)
    ckpt = out.with_suffix(".pt")
    save_checkpoint(ckpt, shrunk_checkpoint(plan, posts))
    try:
        options = ExportOptions(
            keep_reference=False,
            precisions=precisions,
            calib=calib,
            images=images,
            max_posts=SMALL_POSTS,
        )
        export_checkpoint(ckpt, out, options)
    finally:
        ckpt.unlink()


def add_wheels(kit: Path, wheels: Path) -> None:
    """Copy the wheels.

    Raises:
        InputError: There are none.
    """
    target = kit / "wheels"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    paths = sorted(wheels.glob("*.whl"))
    if not paths:
        raise InputError(f"{wheels} holds no wheels; see --help for the download commands")
    for path in paths:
        shutil.copyfile(path, target / path.name)


def sizes(kit: Path) -> list[str]:
    """A line per item, and the total of each call."""
    lines = []
    totals: dict[str, float] = {}
    for item in sorted(kit.glob("[!.]*/*")):
        files = [item] if item.is_file() else [p for p in item.rglob("*") if p.is_file()]
        mib = sum(path.stat().st_size for path in files) / 2**20
        lines.append(f"{mib:8.2f} MiB  {item.relative_to(kit)}")
        part = "the trained bundle" if item.parent.name == "small" else "wheels and the rest"
        totals[part] = totals.get(part, 0.0) + mib
    for part, mib in totals.items():
        verdict = "" if mib <= CALL_MIB else f", MORE than {CALL_MIB:g}: leave something out"
        lines.append(f"{mib:8.2f} MiB  call with {part}{verdict}")
    return lines


@click.command("kit", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--out", type=FilePath, default=Path(".kit"), show_default=True, help="The kit.")
@click.option("--wheels", type=FilePath, help="Folder of downloaded wheels.")
@click.option("--paper", type=FilePath, help="A bundle of `amlr-train --random`.")
@click.option("--small", type=FilePath, help="A trained bundle that holds its eager model.")
@click.option("--kernels", is_flag=True, help="Record our kernels' launches and compile them.")
@click.option("--posts", type=FilePath, help="Posts for --small: JSON lines or CoNLL.")
@click.option("--images", type=FilePath, help="Folder of their pictures.")
@log_to_stderr("amlr")
def kit_command(
    out: Path,
    wheels: Path | None,
    paper: Path | None,
    small: Path | None,
    kernels: bool,
    posts: Path | None,
    images: Path | None,
) -> None:
    """Fill a kit, part by part; parts that are not named stay as they are."""
    if wheels is not None:
        add_wheels(out, wheels)
    if paper is not None:
        _check_random(paper)
        _log.info("packing the paper preset")
        add_part(out / "paper", paper, paper_posts())
    if small is not None:
        from amlr.export.posts import read_posts

        read = read_posts(posts, images, most=SMALL_POSTS)
        chosen = [item.post for item in (*read.tuning, *read.held_out)]
        shrunk = out / ".small" / "small.plan"
        try:
            shrink_bundle(small, chosen, shrunk, calib=posts, images=images)
            add_part(out / "small", shrunk, chosen)
        finally:
            shutil.rmtree(shrunk.parent, ignore_errors=True)
    if kernels:
        from amlr.benchmarks.gpu.kernel_steps import write_kernel_kit

        write_kernel_kit(out)
    # Nothing of it is ever committed, wherever it lies.
    (out / ".gitignore").write_text("*\n", encoding="utf-8")
    for line in sizes(out):
        click.echo(line)


def _check_random(plan: Path) -> None:
    """Refuse a trained bundle, which would not travel, and one without its eager model.

    Raises:
        InputError: It is one of these.
    """
    from amlr.training.random_checkpoint import is_random

    manifest, _ = read_manifest(plan)
    if not is_random(manifest.provenance.get("training") or {}):
        raise InputError(f"{plan} has trained weights; make one with: amlr-train --random")
    if REFERENCE not in manifest.files:
        raise InputError(f"{plan} holds no eager model; export it without --no-reference")


def paper_posts() -> list[Post]:
    """Invented posts, two of three with one of a few pictures."""
    from amlr.export.samples import sample_posts

    return sample_posts(PAPER_POSTS, images=PAPER_PICTURES, seed=5)


if __name__ == "__main__":
    kit_command()
