"""Engines of a bundle: every graph of a variant, for one library, reused where nothing changed."""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx

from amlr.errors import BundleError, ExportError
from amlr.export.options import ExportOptions
from amlr.export.profiles import Extent, Profile, Shapes, input_dims, shapes_for
from amlr.export.staging import StagedBundle
from amlr.export.tensorrt.audit import Audit
from amlr.export.tensorrt.builder import build_plan, device_sm
from amlr.runtime.bundle import Bundle
from amlr.runtime.engine_record import (
    GRAPHS,
    EngineRecord,
    GraphEngine,
    describe_engine,
    host_platform,
)
from amlr.runtime.manifest import Manifest
from amlr.runtime.tensorrt_library import TensorRT

log = logging.getLogger(__name__)


def add_engines(
    bundle: StagedBundle,
    library: TensorRT,
    variant: str,
    options: ExportOptions,
    *,
    reuse: Bundle | None = None,
) -> None:
    """Build all graphs of one variant for one library, and list them in the manifest.

    Args:
        bundle: Plans go to `engines/<library>-<version>-<sms>/<precision>/`.
        library: From `load_tensorrt`.
        variant: Name of the variant, `fp16` or `fp32`.
        options: Profiles, architectures and build options.
        reuse: An older bundle; engines whose inputs are the same are copied from it.

    Raises:
        ExportError: The variant is missing, or a graph was not accepted or could not be built.
    """
    chosen = bundle.manifest.variants.get(variant)
    if chosen is None:
        raise ExportError(
            f"the bundle has no variant {variant!r}, only {sorted(bundle.manifest.variants)}; "
            f"export it with --precision fp32,{variant}"
        )
    opened = bundle.open()
    sms = options.sms if library.is_rtx else (device_sm(),)
    place = f"engines/{library.name}-{'-'.join(f'sm{sm}' for sm in sms)}/{chosen.precision}"
    old = _reusable(reuse)
    engines: dict[str, GraphEngine] = {}
    for graph in GRAPHS:
        path = opened.graph_path(chosen, graph)
        shapes = _shapes(path, graph, [_fitting(p, bundle.manifest) for p in options.profiles])
        key = _key(opened.graph_hash(chosen, graph), library, sms, shapes, options)
        target = bundle.folder / place / f"{graph}.engine"
        target.parent.mkdir(parents=True, exist_ok=True)
        if key in old:
            file, engine = old[key]
            shutil.copyfile(file, target)
            engines[graph] = replace(engine, file=f"{place}/{graph}.engine")
            log.info(f"  {graph}: unchanged, {engine.bytes / 1e6:.1f} MB reused")
            continue
        plan = build_plan(
            library,
            path,
            graph=graph,
            shapes=shapes,
            precision=chosen.precision,
            islands=[row[0] for row in chosen.parity.get("islands", {}).get(graph, ())],
            options=options,
        )
        target.write_bytes(plan.data)
        engines[graph] = GraphEngine(
            file=f"{place}/{graph}.engine",
            key=key,
            bytes=len(plan.data),
            build_s=round(plan.build_s, 3),
            shapes=tuple({name: (a, b, c) for name, (a, b, c) in s.items()} for s in shapes),
            audit=plan.audit.to_dict(),
        )
        _warn_of_slow_attention(plan.audit, chosen.precision)
    record = EngineRecord(
        library=library.family,
        version=library.version,
        sms=tuple(sms),
        precision=chosen.precision,
        variant=variant,
        platform=host_platform(),
        options=options.build_choices(),
        graphs=engines,
        buckets=options.buckets,
    )
    for line in describe_engine(record):
        log.info(f"  {line}")
    bundle.save(engines=_merged(bundle.manifest.engines, record))


def _shapes(path: Path, graph: str, profiles: Sequence[Profile]) -> list[Shapes]:
    """Input shapes of a graph for each profile; several profiles can be the same to one graph."""
    dims = input_dims(onnx.load(str(path), load_external_data=False))
    found: list[Shapes] = []
    for profile in profiles:
        each = shapes_for(graph, dims, profile)
        found += [each] if each not in found else []
    return found


def _merged(engines: Sequence[dict[str, Any]], record: EngineRecord) -> tuple[dict[str, Any], ...]:
    """The manifest's engines with one record added, its predecessor for the same place gone."""
    new = asdict(record)
    same = ("library", "version", "sms", "precision", "variant", "platform")
    wanted = json.dumps([new[name] for name in same])
    kept = [e for e in engines if json.dumps([e.get(name) for name in same]) != wanted]
    return (*kept, new)


def _fitting(profile: Profile, manifest: Manifest) -> Profile:
    """A profile whose text lengths run from the longest unit to at most the longest window."""
    low = manifest.scales
    high = max(low, min(profile.tokens.max, manifest.text.max_tokens))
    opt = min(max(profile.tokens.opt, low), high)
    return replace(profile, tokens=Extent(low, opt, high))


def _key(
    graph_hash: str,
    library: TensorRT,
    sms: Sequence[int],
    shapes: Sequence[Shapes],
    options: ExportOptions,
) -> str:
    parts = [graph_hash, library.name, list(sms), host_platform(), options.build_choices()]
    text = json.dumps([*parts, [dict(s) for s in shapes]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _reusable(bundle: Bundle | None) -> dict[str, tuple[Path, GraphEngine]]:
    found: dict[str, tuple[Path, GraphEngine]] = {}
    if bundle is None:
        return found
    for values in bundle.manifest.engines:
        for engine in EngineRecord.from_dict(values).graphs.values():
            with suppress(BundleError):
                found[engine.key] = (bundle.verified(engine.file), engine)
    return found


def _warn_of_slow_attention(audit: Audit, precision: str) -> None:
    """Only float16 has such kernels; the heads of `fusion` can be wider than any kernel takes."""
    fused, all_of_them = audit.fused_attentions, audit.attentions
    if fused is None or fused >= all_of_them or precision != "fp16" or audit.graph == "fusion":
        return
    log.warning(
        f"  {audit.graph}: {fused} of {all_of_them} attentions became one kernel each, all were "
        "expected; the others will be slow: try another version of the library"
    )


def target_sms(library: TensorRT, options: ExportOptions) -> str:
    """What a build is for, for people: `SM 8.0, 8.6`."""
    if not library.is_rtx:
        return "the device at hand"
    return "SM " + ", ".join(f"{sm / 10:.1f}" for sm in options.sms)
