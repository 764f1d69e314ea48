"""A second bundle that answers differently: the first with another decoder bias, golden renewed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from amlr.export.golden import save_golden
from amlr.export.staging import StagedBundle
from amlr.runtime import Engine, Post
from amlr.runtime.bundle import read_manifest
from amlr.runtime.manifest import GOLDEN


def rebias(source: Path, target: Path, bias: float) -> Path:
    """Copy a bundle and change its bias; the result passes its own golden check."""
    shutil.copytree(source, target)
    manifest, _ = read_manifest(target)
    manifest = replace(manifest, decoder=replace(manifest.decoder, bias=bias))
    bundle = StagedBundle(target, manifest)
    bundle.save()
    with Engine.load(target, provider="onnxruntime", precision="fp32", check="off") as engine:
        posts = [Post(post.text, post.image, post.words) for post in engine.bundle.golden]
        results = engine.tag_batch(posts)
    with safe_open(target / GOLDEN, "np") as file:
        listed = json.loads(file.metadata()["posts"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for post, result in zip(listed, results, strict=True):
        post["entities"] = [entity.to_dict() for entity in result.entities]
    save_golden(target / GOLDEN, listed, tensors)
    bundle.save()
    return target
