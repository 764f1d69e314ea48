"""What `amlr-inspect` prints about a bundle."""

from collections.abc import Iterator
from typing import Any

from amlr.runtime.engine_record import EngineRecord, describe_engine
from amlr.runtime.manifest import Manifest


def describe(manifest: Manifest, digest: str) -> Iterator[str]:
    """Lines for people."""
    size = sum(entry.bytes for entry in manifest.files.values())
    decoder, text, image = manifest.decoder, manifest.text, manifest.image
    created = manifest.provenance.get("created", "unknown")
    rows = {
        "name": manifest.name,
        "manifest sha256": digest,
        "created": created,
        "checkpoint sha256": manifest.provenance.get("checkpoint_sha256", "unknown"),
        "labels": ", ".join(manifest.labels),
        "units": f"1..{manifest.scales} subwords, width {manifest.width}",
        "attention": f"{manifest.heads} heads of {manifest.head_width} over {manifest.regions} "
        "regions",
        "decoder": f"{decoder.kind}, b = {decoder.bias:g}, w = {decoder.weight:g}, "
        f"temperature {decoder.temperature:g}",
        "calibration": _calibration(manifest.provenance),
        "text": f"windows of {text.max_tokens} subwords, overlap {text.overlap_tokens}, "
        f"word rule {text.word_rule}",
        "pictures": f"{image.size}x{image.size}, {image.resize}, {image.resample}; at most "
        f"{manifest.limits.max_bytes / 1e6:g} MB and {manifest.limits.max_pixels / 1e6:g} "
        f"megapixels; steps version {image.version}",
        "files": f"{len(manifest.files)}, {size / 1e6:.1f} MB",
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        yield f"{name:<{width}}  {value}"
    note = image.steps_note()
    if note is not None:
        yield f"note: {note}"
    yield ""
    yield f"{'variant':<16} {'for':<14} {'graphs':>6} {'changed entities':>18}  largest error"
    for name, variant in manifest.variants.items():
        yield (
            f"{name:<16} {variant.provider or 'any provider':<14} {len(variant.graphs):>6} "
            f"{_changed(variant.parity):>18}  {_errors(variant.parity)}"
        )
        yield from _certificates(variant.parity)
    for engine in manifest.engines:
        yield from describe_engine(EngineRecord.from_dict(engine))
    if manifest.kernels:
        kinds = sorted({str(kernel.get("architecture")) for kernel in manifest.kernels})
        yield f"kernels: {len(manifest.kernels)} compiled CUDA decoders for {', '.join(kinds)}"


def _calibration(provenance: dict[str, Any]) -> str:
    training = provenance.get("training")
    found = training.get("calibration") if isinstance(training, dict) else None
    if not isinstance(found, dict):
        return "not measured"
    try:
        before, after = found["ece_before"], found["ece_after"]
        return (
            f"expected error {before:.4f} at temperature 1, {after:.4f} at "
            f"{found['temperature']:g}, on {found['entities']} entities of {found['posts']} "
            "held-out posts"
        )
    except (KeyError, TypeError, ValueError):
        return "not measured"


def _certificates(parity: dict[str, Any]) -> Iterator[str]:
    """What a low precision certified on posts that its radii were not measured on."""
    found = parity.get("certificates")
    for kind, judged in found.items() if isinstance(found, dict) else ():
        try:
            yield (
                f"  certifies {100 * judged['certified']:.1f} % of {judged['posts']} posts "
                f"({kind}), {judged['beyond']} of them beyond the radius, "
                f"{judged['changed']} wrong"
            )
        except (KeyError, TypeError, ValueError):
            yield f"  certificates ({kind}): not measured"


def _changed(parity: dict[str, Any]) -> str:
    if "changed_entities" not in parity:
        return "not measured"
    return f"{parity['changed_entities']} of {parity.get('entities', '?')}"


def _errors(parity: dict[str, Any]) -> str:
    errors = parity.get("max_abs_error")
    if not isinstance(errors, dict):
        return "not measured"
    return ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
