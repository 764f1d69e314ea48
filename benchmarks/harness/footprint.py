"""Sizes on disk and work wasted on padding."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amlr.benchmarks.data import BenchPost
from amlr.benchmarks.harness.workloads import BATCH
from amlr.benchmarks.report.records import PaddingRecord, ResourcesRecord
from amlr.benchmarks.systems.base import RESEARCH_STEPS
from amlr.runtime.bundle import Bundle
from amlr.runtime.units import aligned_units, unit_count


def measure_footprint(bundle: Bundle, posts: Sequence[BenchPost]) -> ResourcesRecord:
    """Megabytes of the bundle and of each variant's graphs with their weights; padding."""
    files = bundle.manifest.files
    sizes = {
        name: sum(files[file].bytes for file in bundle.files_of(variant.graphs.values()))
        for name, variant in bundle.manifest.variants.items()
    }
    return ResourcesRecord(
        bundle_mb=round(sum(entry.bytes for entry in files.values()) / 1e6, 2),
        variants_mb={name: round(size / 1e6, 2) for name, size in sizes.items()},
        padding=padding_waste(posts, bundle),
    )


def padding_waste(posts: Sequence[BenchPost], bundle: Bundle) -> PaddingRecord:
    """Share of computed steps and units that nobody needs, by way of batching."""
    scales = bundle.manifest.scales
    encoded = bundle.encoder.encode([(p.post.text, p.post.words) for p in posts[:2000]])
    windows = [window for text in encoded for window in text.windows]
    if not windows:
        return PaddingRecord()
    lengths = np.array([len(window.input_ids_t) for window in windows])
    aligned = sum(len(aligned_units(w.first_n, w.last_n, scales)) for w in windows)
    valid = sum(unit_count(int(n), scales) for n in lengths)
    padded = np.maximum(lengths, RESEARCH_STEPS)
    all_padded = sum(unit_count(int(n), scales) for n in padded)
    sorted_lengths = np.sort(lengths)
    return PaddingRecord(
        windows=len(windows),
        tokens_mean=round(float(lengths.mean()), 1),
        tokens_max=int(lengths.max()),
        steps_wasted={
            "padded to 50, as released": _waste(lengths, padded),
            "padded to the longest of 16": _waste(lengths, _batch_max(lengths)),
            "sorted, then padded to the longest of 16": _waste(
                sorted_lengths, _batch_max(sorted_lengths)
            ),
            "packed": 0.0,
        },
        units={
            "as released": round(all_padded / len(windows), 1),
            "valid": round(valid / len(windows), 1),
            "word-aligned": round(aligned / len(windows), 1),
        },
    )


def _batch_max(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    groups = [lengths[i : i + BATCH] for i in range(0, len(lengths), BATCH)]
    return np.concatenate([np.full(len(group), group.max()) for group in groups])


def _waste(lengths: npt.NDArray[np.int64], padded: npt.NDArray[np.int64]) -> float:
    return round(1 - float(lengths.sum()) / float(padded.sum()), 4)
