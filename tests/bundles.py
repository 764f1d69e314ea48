"""Changing a bundle's files the way someone who tampers would."""

import hashlib
import json
from pathlib import Path


def relist(plan: Path, name: str) -> None:
    """Make the manifest agree with a changed file."""
    manifest = json.loads((plan / "manifest.json").read_text())
    content = (plan / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"sha256": digest, "bytes": len(content)}
    (plan / "manifest.json").write_text(json.dumps(manifest))
