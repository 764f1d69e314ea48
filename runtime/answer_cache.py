"""Answers by post: for services that see the same post again. Off unless a size is given.

The key holds everything an answer depends on: text, words, the picture's content, and the engine's
own key (bundle, provider, precision, decoder). Errors and answers with a warning are not kept: a
picture that could not be read may be there the next time.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from amlr.errors import InputError
from amlr.runtime.image import ImageLimits
from amlr.runtime.known_files import KnownFiles, file_stamp, read_keyed
from amlr.runtime.results import Post, Result

Ask = Callable[[list[Post]], list[Result]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerStats:
    """Counters since the cache was made."""

    hits: int
    misses: int
    entries: int


class _Keyed(NamedTuple):
    """A post on its way.

    Attributes:
        key: None if it cannot have one.
        post: With its picture read, unless that file is known.
        picture: Key of the picture, empty without one.
    """

    key: str | None
    post: Post
    picture: str


class AnswerCache:
    """Least-recently-used answers, a bounded number of them. Safe for several threads."""

    def __init__(self, entries: int, limits: ImageLimits, files: KnownFiles | None = None) -> None:
        """Make an empty cache.

        Args:
            entries: Answers to keep.
            limits: Of pictures, which are read to be told apart.
            files: Picture files that need not be read again; None reads them all.
        """
        self._most, self._limits, self._files = entries, limits, files
        self._held: OrderedDict[str, Result] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def tag_batch(self, posts: Sequence[Post], engine_key: str, ask: Ask) -> list[Result]:
        """Answer posts, asking only about those not seen before; equal posts are asked once.

        Args:
            posts: Posts.
            engine_key: What answers depend on besides the post.
            ask: Tags posts, in order.
        """
        keyed = [self._key(post, engine_key) for post in posts]
        found: dict[int, Result] = {}
        first: dict[str, int] = {}
        with self._lock:
            for place, (key, _, _) in enumerate(keyed):
                if key is not None and key in self._held:
                    self._held.move_to_end(key)
                    found[place] = self._held[key]
                    self._hits += 1
                else:
                    self._misses += 1
                    first.setdefault(key or f"#{place}", place)
        asked = list(first.values())
        answers = dict(zip(asked, ask([keyed[place].post for place in asked]), strict=True))
        kept = [place for place in asked if self._is_unchanged(keyed[place])]
        with self._lock:
            for place in kept:
                self._hold(keyed[place].key, answers[place])
        return [
            found[place] if place in found else answers[first[key or f"#{place}"]]
            for place, (key, _, _) in enumerate(keyed)
        ]

    def stats(self) -> AnswerStats:
        """Counters and current size."""
        with self._lock:
            return AnswerStats(hits=self._hits, misses=self._misses, entries=len(self._held))

    def _key(self, post: Post, engine_key: str) -> _Keyed:
        kinds: tuple[object, object] = (post, getattr(post, "text", None))
        if not isinstance(kinds[0], Post) or not isinstance(kinds[1], str):
            return _Keyed(None, post, "")
        picture = ""
        try:
            if post.image is not None:
                picture, content = read_keyed(post.image, self._limits, self._files)
                # Read once: the file may be another one a moment later.
                post = replace(post, image=content)
            words = "" if post.words is None else repr([(int(a), int(b)) for a, b in post.words])
        # What is wrong with it, the engine will say.
        except (InputError, TypeError, ValueError):
            return _Keyed(None, post, "")
        text = "\0".join((engine_key, picture, words, post.text))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return _Keyed(digest, post, picture)

    def _is_unchanged(self, keyed: _Keyed) -> bool:
        """Whether a picture that the engine read by its path is still the one of the key."""
        if self._files is None or not isinstance(keyed.post.image, (str, Path)):
            return True
        stamp = file_stamp(keyed.post.image)
        return stamp is not None and self._files.get(stamp) == keyed.picture

    def _hold(self, key: str | None, result: Result) -> None:
        if key is None or result.error is not None or result.warnings:
            return
        self._held[key] = result
        self._held.move_to_end(key)
        while len(self._held) > self._most:
            self._held.popitem(last=False)
