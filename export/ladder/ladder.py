"""Low-precision variants of a bundle that is being written: made, measured, admitted.

A variant enters the manifest with what it changed on posts that were not used to make it. Only one
that changed nothing is taken by `precision="auto"`; the others must be asked for by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from amlr.errors import BackendUnavailableError, ExportError
from amlr.export.ladder.calibration import record_feeds
from amlr.export.ladder.choices import LEVELS, PARTS, Mix, mixed_variant, search
from amlr.export.ladder.int8 import write_int8
from amlr.export.ladder.measure import Answers, Parity, ask, compare
from amlr.export.ladder.pictures import fit_margin
from amlr.export.ladder.posts import ProofPost, ProofPosts, read_posts
from amlr.export.samples import sample_posts
from amlr.export.staging import list_files
from amlr.runtime.bundle import Bundle
from amlr.runtime.decode import Decoder
from amlr.runtime.engine import Engine
from amlr.runtime.golden import check_golden
from amlr.runtime.image import content_key, read_source
from amlr.runtime.manifest import MANIFEST, Manifest, Variant
from amlr.runtime.providers.base import ProviderOptions
from amlr.runtime.providers.registry import open_provider
from amlr.runtime.radii import PICTURE, PICTURE_ONLY, TEXT, Radii

PRECISIONS = ("bf16", "int8")
CALIBRATION_POSTS = 96
_INVENTED = 8
SEARCH_POSTS = 64
# Share of the regions' spread by which bfloat16 may move them.
LARGEST_PICTURE_ERROR = 0.03
_CPUS = {"openvino": "openvino", None: "onnxruntime-cpu"}
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderOptions:
    """What to build and on which posts.

    Attributes:
        precisions: Of `PRECISIONS`.
        calib: JSON lines or CoNLL file; None invents posts.
        images: Folder of its pictures.
        most: Posts to read from it.
        mix: Also search the fastest mix of precisions per graph that changes nothing.
    """

    precisions: Sequence[str] = PRECISIONS
    calib: Path | None = None
    images: Path | None = None
    most: int = 1000
    mix: bool = True


def add_variants(folder: Path, options: LadderOptions, *, say: Say = lambda line: None) -> Manifest:
    """Add CPU variants to a bundle folder, which must be staged: it is changed in place.

    Args:
        folder: A complete float32 bundle.
        options: What to build.
        say: Receives one line per step.

    Returns:
        The manifest, as written.

    Raises:
        ExportError: A precision is unknown.
        InputError: The calibration posts cannot be used.
    """
    unknown = set(options.precisions) - set(PRECISIONS)
    if unknown:
        raise ExportError(f"unknown CPU precisions {sorted(unknown)}; expected {PRECISIONS}")
    posts = read_posts(options.calib, options.images, most=options.most)
    ladder = _Ladder(Bundle.open(folder), posts, say)
    if "int8" in options.precisions:
        ladder.write_int8(folder)
    found = ladder.variants(options)
    manifest = ladder.bundle.manifest
    # Manifest order is the order in which `auto` tries: the fastest first.
    ordered = dict(sorted(found.items(), key=lambda item: item[1].parity["ms_per_post"]))
    fp32 = manifest.variants["fp32"]
    fp32 = replace(fp32, parity={**fp32.parity, "when_needed": ladder.picture_margin()})
    variants = {**ordered, **manifest.variants, "fp32": fp32}
    manifest = replace(manifest, variants=variants, files=list_files(folder))
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


class _Ladder:
    def __init__(self, bundle: Bundle, posts: ProofPosts, say: Say) -> None:
        self.bundle, self._posts, self._say = bundle, posts, say
        self._fp32 = bundle.manifest.variants["fp32"]
        self._int8: dict[str, str] = {}
        self._exact: dict[str, Answers] = {}

    def write_int8(self, folder: Path) -> None:
        """Quantize the graphs that CPUs run."""
        tuning = self._posts.tuning[:CALIBRATION_POSTS]
        self._say(f"calibrating int8 on {len(tuning)} posts of {self._posts.source}")
        posts = [proof.post for proof in tuning]
        if all(post.image is None for post in posts):
            # Without one picture the image graph would have no range of values at all.
            self._say("  they have no picture: invented ones are used; give --images for your own")
            posts += sample_posts(_INVENTED, images=_INVENTED)
        feeds = record_feeds(self.bundle, posts)
        target = folder / "onnx" / "int8"
        target.mkdir(parents=True, exist_ok=True)
        sources = {
            name: folder / self._fp32.graphs[name] for name in feeds if name in self._fp32.graphs
        }
        files = write_int8(sources, feeds, target)
        self._int8 = {n: path.relative_to(folder).as_posix() for n, path in files.items()}

    def variants(self, options: LadderOptions) -> dict[str, Variant]:
        """Measured variants by name; one whose provider is absent here is left out, and said."""
        wanted: dict[str, Variant] = {}
        low = {"text": "int8", "image": "int8", "fusion": "int8"}
        if "bf16" in options.precisions:
            mix = {"text": "bf16", "image": self._picture_level(), "fusion": "bf16"}
            wanted["bf16"] = self._variant(mix, "bf16", "openvino")
        if "int8" in options.precisions:
            wanted["int8-openvino"] = self._variant(low, "int8", "openvino")
            wanted["int8"] = self._variant(low, "int8", None)
        if options.mix:
            for provider in ("openvino", None):
                mixed = self._search(options.precisions, provider)
                if mixed is not None:
                    wanted["mixed" if provider is None else f"mixed-{provider}"] = mixed
        measured = {}
        for name, variant in wanted.items():
            try:
                measured[name] = self._measured(name, variant)
            except BackendUnavailableError as error:
                self._say(f"  {name} left out: {error}")
        return measured

    def _variant(self, mix: Mix, precision: str, provider: str | None) -> Variant:
        return mixed_variant(
            mix, self._fp32.graphs, self._int8, precision=precision, provider=provider
        )

    def _picture_level(self) -> str:
        """`bf16` where the picture encoder bears it, which small convolutional ones do not."""
        pixels = [post.pixels_chw for post in self.bundle.golden if post.pixels_chw is not None]
        if not pixels:
            return "fp32"
        batch = np.stack(pixels[:4])
        found = []
        for provider, compute in ((None, {}), ("openvino", {"image": "bf16"})):
            variant = replace(self._fp32, provider=provider, compute=compute)
            try:
                with self._engine(variant) as engine:
                    found.append(np.stack(engine.pipeline.provider.encode_images(batch)))
            except BackendUnavailableError:
                return "fp32"
        moved = np.sqrt(np.square(found[1] - found[0]).mean())
        return "bf16" if moved <= LARGEST_PICTURE_ERROR * found[0].std() else "fp32"

    def _search(self, precisions: Sequence[str], provider: str | None) -> Variant | None:
        able = [p for p in LEVELS if p in precisions or p == "fp32"]
        if provider is None:
            able = [p for p in able if p != "bf16"]
        if len(able) < 2:
            return None
        posts = self._posts.tuning[:SEARCH_POSTS]

        def measure(mix: Mix) -> tuple[Parity, float]:
            variant = self._variant(mix, "mixed", provider)
            other = self._ask(variant, posts)
            exact = self._exact_answers("search", posts, provider)
            return compare(exact, other, posts), other.cold_ms

        try:
            mix, _ = search({part: tuple(able) for part in PARTS}, measure)
        except BackendUnavailableError as error:
            self._say(f"  no search for {provider}: {error}")
            return None
        self._say(f"  mix for {provider or 'onnxruntime'}: {mix}")
        if len(set(mix.values())) == 1:
            return None  # fp32 itself, or a variant that is there already
        return self._variant(mix, "mixed", provider)

    def _measured(self, name: str, variant: Variant) -> Variant:
        posts = self._posts
        proof = self._ask(variant, posts.proof)
        exact = self._exact_answers("proof", posts.proof, None)
        parity = compare(exact, proof, posts.proof)
        radii = self._radii(variant)
        golden = self._golden_error(variant)
        self._say(
            f"  {name}: {parity.changed_entities} of {parity.entities} entities changed over "
            f"{parity.posts} posts, {proof.cold_ms:.2f} ms a post, "
            f"{proof.hit_ms:.2f} on a known picture"
        )
        record: dict[str, Any] = {
            **parity.to_dict(),
            "source": posts.source,
            "calibration": self._calibration(),
            "radii": {kind: found.to_dict() for kind, found in radii.items()},
            "escalation": self._clearance(variant, exact, proof, radii),
            "ms_per_post": round(proof.cold_ms, 3),
            "hit_ms_per_post": round(proof.hit_ms, 3),
            "fp32_ms_per_post": round(exact.cold_ms, 3),
            "fp32_hit_ms_per_post": round(exact.hit_ms, 3),
        }
        return replace(variant, parity=record, tolerance=golden)

    def picture_margin(self) -> dict[str, Any]:
        """How large a margin lets float32 do without the picture, and what that changes."""
        halves = []
        for name, posts in (("tuning", self._posts.tuning), ("proof", self._posts.proof)):
            bare = [replace(p, post=replace(p.post, image=None)) for p in posts]
            without = self._ask(self._fp32, bare)
            shown = [
                row
                for row, proof in enumerate(posts)
                if proof.post.image is not None and without.scores[row] is not None
            ]
            scores = [found for row in shown if (found := without.scores[row]) is not None]
            margins = Decoder.of(self.bundle).margins(scores)
            exact = self._exact_answers(name, posts, None)
            changed = [exact.entities[row] != without.entities[row] for row in shown]
            halves.append((margins, np.array(changed, np.bool_)))
        return fit_margin(*halves[0], *halves[1])

    def _calibration(self) -> dict[str, Any]:
        """What the radii were measured on."""
        posts = self._posts.tuning
        used = self._exact_answers("tuning", posts, None).image_used
        pictures = [proof.post.image for proof, seen in zip(posts, used, strict=True) if seen]
        limits = self.bundle.manifest.limits
        photos = {content_key(read_source(picture, limits)) for picture in pictures if picture}
        return {
            "given": self._posts.given,
            "posts": len(posts),
            "with_picture": len(pictures),
            "photos": len(photos),
        }

    def _radii(self, variant: Variant) -> dict[str, Radii]:
        """Largest errors on the tuning half, by kind of post; none of a kind it does not hold.

        Invented posts are of no kind that users send.
        """
        posts = self._posts.tuning
        if not self._posts.given:
            return {}
        exact = self._exact_answers("tuning", posts, None)
        alone = replace(
            variant,
            graphs={**self._fp32.graphs, "image": variant.graphs["image"]},
            compute={n: kind for n, kind in variant.compute.items() if n == "image"},
        )
        seen = np.array(exact.image_used, np.bool_)
        errors = compare(exact, self._ask(variant, posts), posts).errors_p2
        measured = {TEXT: errors[~seen], PICTURE: errors[seen]}
        if seen.any():
            errors = compare(exact, self._ask(alone, posts), posts).errors_p2
            measured[PICTURE_ONLY] = errors[seen]
        found = {}
        for kind, of_kind in measured.items():
            if len(of_kind):
                units, tokens = of_kind.max(axis=0).tolist()
                found[kind] = Radii(units=units, tokens=tokens, posts=len(of_kind))
        return found

    def _clearance(
        self, variant: Variant, exact: Answers, other: Answers, radii: Mapping[str, Radii]
    ) -> dict[str, Any]:
        """On the proof half: share that the certificate clears, and what it cleared wrongly."""
        having = [row for row, scores in enumerate(other.scores) if scores is not None]
        cleared = Decoder.of(self.bundle).certify(
            [scores for scores in other.scores if scores is not None],
            [radii.get(PICTURE if other.image_used[row] else TEXT) for row in having],
        )
        rows = [row for row, clear in zip(having, cleared, strict=True) if clear]
        wrong = sum(exact.entities[row] != other.entities[row] for row in rows)
        share = len(rows) / max(1, len(having))
        # A float32 picture is not encoded a second time.
        has_picture = variant.graphs["image"] == self._fp32.graphs["image"]
        again = exact.hit_ms if has_picture and "image" not in variant.compute else exact.cold_ms
        return {
            "cleared": round(share, 4),
            "changed": wrong,
            # What a post costs on average: all of them once, those not cleared once more.
            "ms_per_post": round(other.cold_ms + (1 - share) * again, 3),
        }

    def _golden_error(self, variant: Variant) -> float:
        """Tolerance at load: what the golden posts need here, with room for another CPU."""
        tolerance = 0.01
        with self._engine(variant) as engine:
            while tolerance < 1e3:
                try:
                    check_golden(engine.pipeline, tolerance, entities=False)
                    return 2 * tolerance
                except Exception:
                    tolerance *= 1.5
        raise ExportError(f"the {variant.precision} variant is off by more than any tolerance")

    def _exact_answers(
        self, name: str, posts: Sequence[ProofPost], provider: str | None
    ) -> Answers:
        key = f"{name}:{provider}"
        if key not in self._exact:
            self._exact[key] = self._ask(replace(self._fp32, provider=provider), posts)
        return self._exact[key]

    def _ask(self, variant: Variant, posts: Sequence[ProofPost]) -> Answers:
        with self._engine(variant) as engine:
            return ask(engine, posts)

    def _engine(self, variant: Variant) -> Engine:
        options = ProviderOptions(threads=1)
        provider = open_provider(_CPUS[variant.provider], self.bundle, variant, options)
        # No variant for the engine: files of a bundle in the making have no hashes yet, and one
        # engine's pictures must not be taken for another's.
        return Engine(self.bundle, provider, image_cache_mb=2000)
