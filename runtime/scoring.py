"""Encoded texts to raw scores, or to entities where the provider decodes itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from amlr.errors import AmlrError, InputError
from amlr.runtime.batching import Batch, Scores, split_batches
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.providers.base import Decoded, DecodesItself, ImageFeatures, Provider
from amlr.runtime.radii import PICTURE, TEXT, Radii
from amlr.runtime.text import EncodedText, TextWindow
from amlr.runtime.units import UnitTable
from amlr.runtime.windows import DecodedPost, PostScores, merge_windows, units_of_windows

Decode = Callable[[Batch, Sequence[ImageFeatures | None], Sequence[EncodedText]], list[Decoded]]
Outcome: TypeAlias = PostScores | DecodedPost | AmlrError | None


def own_decoder(
    provider: Provider, settings: DecoderSettings, radii: Mapping[str, Radii] | None = None
) -> Decode | None:
    """The provider's own decoding by these settings, if it has any.

    Args:
        provider: Perhaps one that decodes.
        settings: The decoder's.
        radii: By kind of post; the provider must then certify what it decodes.
    """
    certifies = radii is not None
    if not isinstance(provider, DecodesItself) or not provider.can_decode(
        settings, certifies=certifies
    ):
        return None

    def decode(
        batch: Batch, images: Sequence[ImageFeatures | None], texts: Sequence[EncodedText]
    ) -> list[Decoded]:
        if radii is None:
            return provider.decode(batch, images, settings)
        of_kinds = [radii.get(TEXT if image is None else PICTURE) for image in images]
        pairs = zip(of_kinds, texts, strict=True)
        covering = [each if each and each.covers(text) else None for each, text in pairs]
        return provider.decode(batch, images, settings, covering)

    return decode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Window:
    """A window on its way.

    Attributes:
        post: Place of its text in the call.
        text: The text it is of.
        window: Its tokens.
        units: What is scored in it.
    """

    post: int
    text: EncodedText
    window: TextWindow
    units: UnitTable


def score_texts(
    bundle: Bundle,
    provider: Provider,
    texts: Sequence[EncodedText | InputError],
    features: Sequence[ImageFeatures | None],
    *,
    every: bool,
    decode: Decode | None,
) -> list[Outcome]:
    """Score the texts that could be encoded.

    Args:
        bundle: Of the provider.
        provider: Runs the graphs.
        texts: Texts, or why there is none.
        features: For each text its picture's features, or None.
        every: All units instead of the word-aligned ones.
        decode: For texts of one window; None scores them all.

    Returns:
        For each text what was found; None where it has no words or could not be encoded.
    """
    scales = bundle.manifest.scales
    # Windows of one text are merged by their scores, so only whole texts are decoded at once.
    whole: list[_Window] = []
    others: list[_Window] = []
    placed = [
        (index, text, window)
        for index, text in enumerate(texts)
        if isinstance(text, EncodedText)
        for window in text.windows
    ]
    tables = units_of_windows([window for _, _, window in placed], scales, every=every)
    for (index, text, window), units in zip(placed, tables, strict=True):
        group = whole if decode and len(text.windows) == 1 else others
        group.append(_Window(post=index, text=text, window=window, units=units))
    outcomes: list[Outcome] = [None] * len(texts)
    for rows, batch in _batches(bundle, provider, whole):
        assert decode is not None
        members = [whole[i] for i in rows]
        images, encoded = zip(*((features[m.post], m.text) for m in members), strict=True)
        decoded = decode(batch, images, encoded)
        for member, of_post in zip(members, decoded, strict=True):
            outcomes[member.post] = (
                DecodedPost(encoded=member.text, found=of_post)
                if np.isfinite(of_post.best)
                else _not_finite()
            )
    scores: dict[int, Scores] = {}
    all_finite = True
    for rows, batch in _batches(bundle, provider, others):
        of_batch = provider.score(batch, [features[others[i].post] for i in rows])
        all_finite = all_finite and _is_finite(of_batch.unit_logits_mc, of_batch.emissions_ny)
        scores.update(zip(rows, batch.split(of_batch), strict=True))
    for post, places in groupby(range(len(others)), lambda i: others[i].post):
        rows = list(places)
        merged = merge_windows(
            others[rows[0]].text,
            [others[i].units for i in rows],
            [scores[i] for i in rows],
            scales=scales,
            every=every,
        )
        is_finite = all_finite or _is_finite(merged.unit_logits_uc, merged.emissions_ty)
        outcomes[post] = merged if is_finite else _not_finite()
    return outcomes


def _is_finite(*arrays: npt.NDArray[np.float32]) -> bool:
    return all(bool(np.isfinite(array).all()) for array in arrays)


def _batches(
    bundle: Bundle, provider: Provider, windows: Sequence[_Window]
) -> Iterator[tuple[list[int], Batch]]:
    sizes = provider.batch_sizes
    lengths = [len(window.window.input_ids_t) for window in windows]
    for group in split_batches(lengths, max_windows=sizes.windows, max_tokens=sizes.tokens):
        yield (
            group,
            Batch(
                [windows[i].window for i in group],
                [windows[i].units for i in group],
                scales=bundle.manifest.scales,
                pad_id=bundle.manifest.token_ids.pad_id,
            ),
        )


def _not_finite() -> AmlrError:
    return AmlrError("the model gave NaN or infinite scores; check its weights with amlr-bench")
