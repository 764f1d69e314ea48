"""Raw scores to entities, by the decoder the bundle names, and whether they could be others.

Shape letters: B posts, N words, U units, C classes, Y tags, E entities.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from amlr.kernels import (
    Units,
    box_redecode,
    entity_marginals,
    margin,
    n_best,
    tag_marginals,
    viterbi_decode,
)
from amlr.kernels.confidence import segment_marginals
from amlr.kernels.joint import add_scores
from amlr.kernels.segmental import Found, find_segments
from amlr.runtime.bundle import Bundle, DecoderWeights
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.radii import Radii
from amlr.runtime.results import Alternative, Entity
from amlr.runtime.windows import DecodedPost, PostScores

# Decoders lay a group of posts out as one dense table; this bounds words x posts in it, so that a
# very long text does not make the table of its short neighbours long as well.
GROUP_CELLS = 16_384
MAX_ALTERNATIVES = 16
_Spans = list[tuple[int, int, int, float]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoder:
    """Turns raw scores into entities, and says how far they are from changing.

    Attributes:
        settings: Which decoder, with its bias, weight and temperature.
        weights: Transition scores of the linear chain.
        labels: Entity classes in the order of the logits.
        tags: Tags in the order of the emissions.
    """

    settings: DecoderSettings
    weights: DecoderWeights
    labels: Sequence[str]
    tags: Sequence[str]

    @classmethod
    def of(cls, bundle: Bundle, settings: DecoderSettings | None = None) -> Self:
        """The decoder of a bundle, by its own settings or others."""
        manifest = bundle.manifest
        return cls(
            settings=settings or manifest.decoder,
            weights=bundle.decoder,
            labels=manifest.labels,
            tags=manifest.tags,
        )

    def entities(self, posts: Sequence[PostScores | DecodedPost]) -> list[tuple[Entity, ...]]:
        """Entities of each post, in text order.

        Args:
            posts: Raw scores; word-aligned units only, sorted by end word. Of posts that were
                decoded already, by these settings, only places become characters.
        """
        results: list[tuple[Entity, ...]] = [()] * len(posts)
        open_posts: list[tuple[int, PostScores]] = []
        for index, post in enumerate(posts):
            if isinstance(post, PostScores):
                open_posts.append((index, post))
                continue
            rows = zip(post.found.entities_e3.tolist(), post.found.scores_e.tolist(), strict=True)
            results[index] = tuple(
                _entity(post, self.labels, a, b, c, score) for (a, b, c), score in rows
            )
        decode = _linear_chain if self.settings.kind == "linear-chain" else _segmental
        for group in _groups([len(post.encoded.word_spans_n2) for _, post in open_posts]):
            members = [open_posts[place][1] for place in group]
            for place, spans in zip(group, decode(members, self), strict=True):
                index, post = open_posts[place]
                results[index] = tuple(_entity(post, self.labels, *span) for span in spans or ())
        return results

    def alternatives(self, post: PostScores, n: int) -> list[Alternative]:
        """The n best different answers to a post of at least one word, best first.

        Fewer come back where there are no more, or where a linear chain's 16 best paths hold fewer.

        Args:
            post: Raw scores.
            n: 1..`MAX_ALTERNATIVES`.
        """
        best = _best_paths if self.settings.kind == "linear-chain" else _best_segmentations
        different: dict[tuple[tuple[int, int, int], ...], Alternative] = {}
        for spans, score in best(post, self, n):
            entities = tuple(_entity(post, self.labels, *span) for span in spans)
            key = tuple((first, last, label) for first, last, label, _ in spans)
            different.setdefault(key, Alternative(entities=entities, score=score))
        return list(different.values())[:n]

    def margins(self, posts: Sequence[PostScores]) -> npt.NDArray[np.float64]:
        """Score of each post's answer minus that of the best other answer."""
        if not posts:
            return np.zeros(0)
        if self.settings.kind == "linear-chain":
            emissions, lengths = _word_emissions(posts, len(self.tags))
            return margin(emissions, lengths, **self._chain())
        units, lengths = self.units(posts)
        return margin(units, lengths)

    def certify(
        self, posts: Sequence[PostScores], radii: Sequence[Radii | None]
    ) -> npt.NDArray[np.bool_]:
        """Whether each post's answer survives every error of its scores within its radii.

        Args:
            posts: Raw scores of posts with at least one word.
            radii: For each post those of the variant that made its scores; None: not certified.
        """
        return np.array([e is not None for e in self.certified_entities(posts, radii)], np.bool_)

    def certified_entities(
        self, posts: Sequence[PostScores], radii: Sequence[Radii | None]
    ) -> list[tuple[Entity, ...] | None]:
        """Entities of the posts that `certify` certifies, None for the others.

        One pass: units, layout and the decoder's own answer are shared with the certificate.
        """
        results: list[tuple[Entity, ...] | None] = [None] * len(posts)
        decode = _linear_chain if self.settings.kind == "linear-chain" else _segmental
        for each in {each for each in radii if each is not None}:
            rows = [row for row, other in enumerate(radii) if other == each]
            for group in _groups([len(posts[row].encoded.word_spans_n2) for row in rows]):
                members = [posts[rows[place]] for place in group]
                for place, spans in zip(group, decode(members, self, each), strict=True):
                    if spans is not None:
                        post = posts[rows[place]]
                        entities = tuple(_entity(post, self.labels, *span) for span in spans)
                        results[rows[place]] = entities
        return results

    def _certify_units(
        self,
        units: Units,
        lengths: npt.NDArray[np.int64],
        answer: Found,
        radii: Radii,
    ) -> npt.NDArray[np.bool_]:
        radius = np.full((len(units.start_u), 1), radii.units)
        if units.has_logits_u is not None:
            # Runs without a unit have no logit that could be wrong.
            radius[~units.has_logits_u] = 0.0
        weight = self._weight()
        return box_redecode(
            units,
            lengths,
            radius=radius,
            token_radius=radii.tokens if weight else 0.0,
            weight=weight,
            answer=answer,
        )

    def units(self, posts: Sequence[PostScores]) -> tuple[Units, npt.NDArray[np.int64]]:
        """What the segmental and the joint decoder read: scored units, and words of each post."""
        lengths = [len(post.encoded.word_spans_n2) for post in posts]
        # Scoring looked for NaN and infinities; the tables are this package's own.
        units = add_scores(
            post_offsets=_offsets([len(post.units) for post in posts]),
            start_u=np.concatenate([post.units.start_word_u for post in posts]),
            end_u=np.concatenate([post.units.end_word_u for post in posts]),
            unit_logits_uc=np.concatenate([post.unit_logits_uc for post in posts]),
            bias=self.settings.bias,
            weight=self._weight(),
            word_offsets=_offsets(lengths),
            word_emissions_wy=np.concatenate([post.word_emissions_ny for post in posts]),
            tags=self.tags,
            labels=self.labels,
            max_entity_words=self.settings.max_entity_words,
        )
        return units, np.array(lengths)

    def _weight(self) -> float:
        return self.settings.weight if self.settings.kind == "joint" else 0.0

    def _chain(self) -> dict[str, Any]:
        """Parameters of the linear chain, as the kernels name them."""
        weights = self.weights
        return {
            "start_y": weights.start_y,
            "transitions_yy": weights.transitions_yy,
            "end_y": weights.end_y,
            "allowed_yy": weights.allowed_yy,
        }


def _word_emissions(
    posts: Sequence[PostScores], tags: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Emissions (B, N, Y) at each word's first step, 0 past the end; words of each post (B,)."""
    lengths = np.array([len(post.encoded.word_spans_n2) for post in posts])
    emissions = np.zeros((len(posts), int(lengths.max()), tags), np.float32)
    for row, post in enumerate(posts):
        emissions[row, : lengths[row]] = post.word_emissions_ny
    return emissions, lengths


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    order = sorted((i for i, n in enumerate(lengths) if n), key=lengths.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        if not groups or (len(groups[-1]) + 1) * lengths[index] > GROUP_CELLS:
            groups.append([])
        groups[-1].append(index)
    return groups


def _segmental(
    posts: Sequence[PostScores], decoder: Decoder, radii: Radii | None = None
) -> list[_Spans | None]:
    """Spans of each post; with radii None for those that are not certified."""
    units, lengths = decoder.units(posts)
    found, _ = find_segments(units)
    certified = [True] * len(posts)
    if radii is not None:
        certified = decoder._certify_units(units, lengths, found, radii).tolist()
    marginals = segment_marginals(units, found.unit_e, decoder.settings.temperature)
    scores = marginals[np.arange(len(found.unit_e)), found.rows_e3[:, 2]]
    rows = zip(found.rows_e3.tolist(), scores.tolist(), strict=True)
    spans = iter([(*row, score) for row, score in rows])
    of_posts = [list(islice(spans, count)) for count in found.counts_b.tolist()]
    return [
        of_post if is_certain else None
        for of_post, is_certain in zip(of_posts, certified, strict=True)
    ]


def _best_segmentations(post: PostScores, decoder: Decoder, n: int) -> list[tuple[_Spans, float]]:
    units, lengths = decoder.units([post])
    (segmentations,), sums = n_best(units, lengths, n)
    marginals = entity_marginals(units, lengths, temperature=decoder.settings.temperature)
    words = int(lengths[0])
    spans = [_with_marginals(rows, units, marginals, words) for rows in segmentations]
    return list(zip(spans, sums[0].tolist(), strict=False))


def _with_marginals(
    rows_e3: npt.NDArray[np.int32],
    units: Units,
    marginals_uc: npt.NDArray[np.float32],
    words: int,
) -> _Spans:
    """Segments (start, end, class) of a single post, each with its marginal probability."""
    # At most one unit per (start, end), so both words in one number find the unit.
    key = units.end_u.astype(np.int64) * words + units.start_u
    position = np.searchsorted(key, rows_e3[:, 1].astype(np.int64) * words + rows_e3[:, 0])
    scores = marginals_uc[position, rows_e3[:, 2]]
    return [(*row, score) for row, score in zip(rows_e3.tolist(), scores.tolist(), strict=True)]


def _linear_chain(
    posts: Sequence[PostScores], decoder: Decoder, radii: Radii | None = None
) -> list[_Spans | None]:
    """Spans of each post; with radii None for those that are not certified."""
    emissions, lengths = _word_emissions(posts, len(decoder.tags))
    chain = decoder._chain()
    tags_bn, _ = viterbi_decode(emissions, lengths, **chain)
    certified = np.ones(len(posts), np.bool_)
    if radii is not None:
        certified = box_redecode(emissions, lengths, radius=radii.tokens, answer=tags_bn, **chain)
    marginals = tag_marginals(emissions, lengths, **chain)
    return [
        _spans_of_path(tags_bn[row, :words], marginals[row, :words], decoder)
        if certified[row]
        else None
        for row, words in enumerate(lengths.tolist())
    ]


def _best_paths(post: PostScores, decoder: Decoder, n: int) -> list[tuple[_Spans, float]]:
    emissions, lengths = _word_emissions([post], len(decoder.tags))
    chain = decoder._chain()
    # Paths may differ in tags that mean no entity, so more of them than answers are looked at.
    paths, sums = n_best(emissions, lengths, MAX_ALTERNATIVES, **chain)
    marginals = tag_marginals(emissions, lengths, **chain)[0]
    reachable = sums[0] > -np.inf
    spans = [_spans_of_path(path, marginals, decoder) for path in paths[0, reachable]]
    return list(zip(spans, sums[0, reachable].tolist(), strict=True))


def _spans_of_path(
    path_n: npt.NDArray[np.int32], marginals_ny: npt.NDArray[np.float32], decoder: Decoder
) -> _Spans:
    sure = np.take_along_axis(marginals_ny, path_n[:, None], axis=1)[:, 0]
    return tag_spans(path_n, sure, decoder.labels, decoder.tags)


def tag_spans(
    tags_n: npt.NDArray[np.int32],
    marginals_n: npt.NDArray[np.float32],
    labels: Sequence[str],
    tags: Sequence[str],
) -> _Spans:
    """Runs of B-X I-X ...; a span is as sure as its least sure tag.

    Args:
        tags_n: Tag of each word.
        marginals_n: Marginal probability of that tag.
        labels: Entity classes.
        tags: Names of the tags.

    Returns:
        First word, last word, class, score of each span.
    """
    spans: _Spans = []
    for word, tag in enumerate(tags_n.tolist()):
        kind, _, label = tags[tag].partition("-")
        if label not in labels or kind not in ("B", "I"):
            continue
        score = float(marginals_n[word])
        last = spans[-1] if spans else None
        if kind == "I" and last and last[1] == word - 1 and labels[last[2]] == label:
            spans[-1] = (last[0], word, last[2], min(last[3], score))
        else:
            spans.append((word, word, list(labels).index(label), score))
    return spans


def _entity(
    post: PostScores | DecodedPost,
    labels: Sequence[str],
    first: int,
    last: int,
    label: int,
    score: float,
) -> Entity:
    text, spans = post.encoded.text, post.encoded.word_spans_n2
    start, end = int(spans[first, 0]), int(spans[last, 1])
    return Entity(start=start, end=end, text=text[start:end], label=labels[label], score=score)


def _offsets(counts: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array([0, *accumulate(counts)], np.int64)
