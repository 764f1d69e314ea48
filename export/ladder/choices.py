"""Precision per graph: the fastest mix whose entities do not change."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from amlr.export.parity import Comparison
from amlr.runtime.manifest import Variant

# A post passes through three parts; padded and packed forms of one belong together.
PARTS = {
    "text": ("text", "text_packed"),
    "image": ("image",),
    "fusion": ("fusion", "fusion_packed", "fusion_closed"),
}
LEVELS = ("int8", "bf16", "fp32")
Mix = dict[str, str]
Try = Callable[[Mix], tuple[Comparison, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One part at one level, everything else float32.

    Attributes:
        error: Root mean square over posts of the largest error of z_class - z_none.
        ms: Milliseconds a post.
    """

    error: float
    ms: float


def mixed_variant(
    mix: Mapping[str, str],
    fp32: Mapping[str, str],
    int8: Mapping[str, str],
    *,
    precision: str,
    provider: str | None,
) -> Variant:
    """The variant that runs each part at its level.

    Args:
        mix: Level of each of `PARTS`.
        fp32: Float32 graph files of the bundle.
        int8: Int8 graph files of the bundle.
        precision: Its name.
        provider: The one provider it is for, or None.
    """
    graphs, compute = dict(fp32), {}
    for part, names in PARTS.items():
        for name in names:
            if name not in fp32:
                continue
            if mix[part] == "int8" and name in int8:
                graphs[name] = int8[name]
            if mix[part] != "fp32" and provider == "openvino" and part != "image":
                # What int8 leaves in float is worth bfloat16 as well.
                compute[name] = "bf16"
            if mix[part] == "bf16" and provider == "openvino":
                compute[name] = "bf16"
    return Variant(precision=precision, provider=provider, graphs=graphs, compute=compute)


def search(levels: Mapping[str, tuple[str, ...]], measure: Try) -> tuple[Mix, dict[str, Step]]:
    """Start with the fastest levels and raise parts until no entity changes.

    The part to raise next is the one whose step up takes away most squared error per millisecond
    it costs.

    Args:
        levels: Levels to consider for each part, fastest first, `fp32` last.
        measure: Parity and milliseconds a post of a mix.

    Returns:
        The mix, all `fp32` if nothing else keeps every entity; and what each single step measured.
    """
    exact = dict.fromkeys(PARTS, "fp32")
    steps = {("fp32", part): Step(error=0.0, ms=0.0) for part in PARTS}
    _, base = measure(exact)
    for part, options in levels.items():
        for level in options:
            if level != "fp32":
                parity, ms = measure({**exact, part: level})
                error = float((parity.errors_p2[:, 0] ** 2).mean() ** 0.5)
                steps[level, part] = Step(error=error, ms=ms - base)
    mix = {part: options[0] for part, options in levels.items()}
    while mix != exact and measure(mix)[0].changed:
        best, best_gain = "", -1.0
        for part, options in levels.items():
            place = options.index(mix[part])
            if place + 1 == len(options):
                continue
            now, then = steps[mix[part], part], steps[options[place + 1], part]
            gain = (now.error**2 - then.error**2) / max(then.ms - now.ms, 1e-3)
            if gain > best_gain:
                best, best_gain = part, gain
        if not best:
            return exact, {f"{part}:{level}": step for (level, part), step in steps.items()}
        mix[best] = levels[best][levels[best].index(mix[best]) + 1]
    return mix, {f"{part}:{level}": step for (level, part), step in steps.items()}
