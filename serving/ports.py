"""What the server asks of an engine; `amlr.runtime.Engine` offers it."""

from collections.abc import Sequence
from typing import Protocol

from amlr.runtime.results import Post, Result


class TaggingEngine(Protocol):
    """Tags posts from several threads at once; `tag_batch` never raises for a bad post."""

    def tag_batch(self, posts: Sequence[Post]) -> list[Result]:
        """One result a post, in order."""
        ...
