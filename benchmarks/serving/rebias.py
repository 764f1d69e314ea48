"""A second bundle that answers differently: the first with another decoder bias, golden renewed."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from amlr.runtime import Engine, Post
from amlr.runtime.manifest import GOLDEN, MANIFEST


def rebias(source: Path, target: Path, bias: float) -> Path:
    """Copy a bundle and change its bias; the result passes its own golden check.

    Args:
        source: A bundle.
        target: Folder to make.
        bias: The joint decoder's bias.
    """
    shutil.copytree(source, target)
    manifest = json.loads((target / MANIFEST).read_text())
    manifest["decoder"]["bias"] = bias
    (target / MANIFEST).write_text(json.dumps(manifest))
    with Engine.load(target, provider="onnxruntime", precision="fp32", check="off") as engine:
        posts = [Post(post.text, post.image, post.words) for post in engine.bundle.golden]
        entities = [[e.to_dict() for e in result.entities] for result in engine.tag_batch(posts)]
    content = _with_entities((target / GOLDEN).read_bytes(), entities)
    (target / GOLDEN).write_bytes(content)
    manifest["files"][GOLDEN] = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    (target / MANIFEST).write_text(json.dumps(manifest))
    return target


def _with_entities(content: bytes, entities: list[list[dict[str, Any]]]) -> bytes:
    """A safetensors file with other golden entities in its head; the tensors stay as they are."""
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    posts = json.loads(head["__metadata__"]["posts"])
    for post, found in zip(posts, entities, strict=True):
        post["entities"] = found
    head["__metadata__"]["posts"] = json.dumps(posts)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # the format wants tensors aligned
    return len(text).to_bytes(8, "little") + text + content[8 + size :]
