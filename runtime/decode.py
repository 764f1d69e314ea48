"""Raw scores to entities, by the decoder the bundle names.

Shape letters: B posts, N words, U units, C classes, Y tags, E entities.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amlr.kernels import (
    Units,
    entity_marginals,
    joint_scores,
    segmental_decode,
    tag_marginals,
    viterbi_decode,
)
from amlr.runtime.bundle import DecoderWeights
from amlr.runtime.manifest import DecoderSettings
from amlr.runtime.results import Entity
from amlr.runtime.windows import DecodedPost, PostScores

# Decoders lay a group of posts out as one dense table; this bounds words x posts in it, so that a
# very long text does not make the table of its short neighbours long as well.
GROUP_CELLS = 16_384
_Found = list[tuple[int, int, int, float]]


def decode_posts(
    posts: Sequence[PostScores | DecodedPost],
    settings: DecoderSettings,
    weights: DecoderWeights,
    *,
    labels: Sequence[str],
    tags: Sequence[str],
) -> list[tuple[Entity, ...]]:
    """Entities of each post, in text order.

    Args:
        posts: Raw scores; word-aligned units only, sorted by end word. Of posts that were decoded
            already, by these settings, only places become characters.
        settings: Which decoder, with its bias, weight and temperature.
        weights: Transition scores of the linear chain.
        labels: Entity classes in the order of the logits.
        tags: Tags in the order of the emissions.
    """
    results: list[tuple[Entity, ...]] = [()] * len(posts)
    open_posts: list[tuple[int, PostScores]] = []
    for index, post in enumerate(posts):
        if isinstance(post, PostScores):
            open_posts.append((index, post))
            continue
        rows = zip(post.found.entities_e3.tolist(), post.found.scores_e.tolist(), strict=True)
        results[index] = tuple(_entity(post, labels, a, b, c, score) for (a, b, c), score in rows)
    for group in _groups([len(post.encoded.word_spans_n2) for _, post in open_posts]):
        members = [open_posts[place][1] for place in group]
        if settings.kind == "linear-chain":
            found = _linear_chain(members, weights, labels, tags)
        else:
            found = _segmental(members, settings, labels, tags)
        for place, entities in zip(group, found, strict=True):
            index, post = open_posts[place]
            results[index] = tuple(_entity(post, labels, *entity) for entity in entities)
    return results


def _groups(lengths: Sequence[int]) -> list[list[int]]:
    order = sorted((i for i, n in enumerate(lengths) if n), key=lengths.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        if not groups or (len(groups[-1]) + 1) * lengths[index] > GROUP_CELLS:
            groups.append([])
        groups[-1].append(index)
    return groups


def build_units(
    posts: Sequence[PostScores],
    settings: DecoderSettings,
    *,
    labels: Sequence[str],
    tags: Sequence[str],
) -> tuple[Units, npt.NDArray[np.int64]]:
    """What the segmental and the joint decoder read: scored units, and the words of each post."""
    lengths = np.array([len(post.encoded.word_spans_n2) for post in posts])
    weight = settings.weight if settings.kind == "joint" else 0.0
    units = joint_scores(
        post_offsets=_offsets([len(post.units) for post in posts]),
        start_u=np.concatenate([post.units.start_word_u for post in posts]),
        end_u=np.concatenate([post.units.end_word_u for post in posts]),
        unit_logits_uc=np.concatenate([post.unit_logits_uc for post in posts]),
        bias=settings.bias,
        weight=weight,
        word_offsets=_offsets(lengths) if weight else None,
        word_emissions_wy=(
            np.concatenate([post.word_emissions_ny for post in posts]) if weight else None
        ),
        tags=tags,
        labels=labels,
        max_entity_words=settings.max_entity_words,
    )
    return units, lengths


def _segmental(
    posts: Sequence[PostScores],
    settings: DecoderSettings,
    labels: Sequence[str],
    tags: Sequence[str],
) -> list[_Found]:
    units, lengths = build_units(posts, settings, labels=labels, tags=tags)
    chosen, _ = segmental_decode(units, lengths)
    if not any(map(len, chosen)):
        return [[] for _ in posts]
    marginals = entity_marginals(units, lengths, temperature=settings.temperature)
    found: list[_Found] = []
    for post, rows in enumerate(chosen):
        own = slice(units.post_offsets[post], units.post_offsets[post + 1])
        # At most one unit per (start, end), so both words in one number find the unit.
        words = int(lengths[post])
        key = units.end_u[own].astype(np.int64) * words + units.start_u[own]
        position = np.searchsorted(key, rows[:, 1].astype(np.int64) * words + rows[:, 0])
        scores = marginals[own][position, rows[:, 2]]
        found.append(
            [(*row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True)]
        )
    return found


def _linear_chain(
    posts: Sequence[PostScores],
    weights: DecoderWeights,
    labels: Sequence[str],
    tags: Sequence[str],
) -> list[_Found]:
    lengths = np.array([len(post.encoded.word_spans_n2) for post in posts])
    emissions = np.zeros((len(posts), int(lengths.max()), len(tags)), np.float32)
    for row, post in enumerate(posts):
        emissions[row, : lengths[row]] = post.word_emissions_ny
    chain = {
        "start_y": weights.start_y,
        "transitions_yy": weights.transitions_yy,
        "end_y": weights.end_y,
    }
    allowed = weights.allowed_yy
    tags_bn, _ = viterbi_decode(emissions, lengths, allowed_yy=allowed, backend="numpy", **chain)
    marginals = tag_marginals(emissions, lengths, allowed_yy=allowed, **chain)
    return [
        tag_spans(
            tags_bn[row, :words],
            np.take_along_axis(marginals[row, :words], tags_bn[row, :words, None], axis=1)[:, 0],
            labels,
            tags,
        )
        for row, words in enumerate(lengths.tolist())
    ]


def tag_spans(
    tags_n: npt.NDArray[np.int32],
    marginals_n: npt.NDArray[np.float32],
    labels: Sequence[str],
    tags: Sequence[str],
) -> list[tuple[int, int, int, float]]:
    """Runs of B-X I-X ...; a span is as sure as its least sure tag.

    Args:
        tags_n: Tag of each word.
        marginals_n: Marginal probability of that tag.
        labels: Entity classes.
        tags: Names of the tags.

    Returns:
        First word, last word, class, score of each span.
    """
    found: _Found = []
    for word, tag in enumerate(tags_n.tolist()):
        kind, _, label = tags[tag].partition("-")
        if label not in labels or kind not in ("B", "I"):
            continue
        score = float(marginals_n[word])
        last = found[-1] if found else None
        if kind == "I" and last and last[1] == word - 1 and labels[last[2]] == label:
            found[-1] = (last[0], word, last[2], min(last[3], score))
        else:
            found.append((word, word, list(labels).index(label), score))
    return found


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


def _offsets(counts: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
