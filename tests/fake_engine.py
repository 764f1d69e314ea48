"""An engine that answers at once with what the post says, and fails when told to."""

import threading
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

from amlr.runtime.results import Entity, Post, Result


def expected_entities(text: str) -> tuple[Entity, ...]:
    """What the fake finds: the text's first word. Enough to tell answers apart."""
    word = text.split(" ")[0]
    return (Entity(start=0, end=len(word), text=word, label="PER", score=0.5),) if word else ()


class FakeEngine:
    """Counts calls, sleeps, and runs `trouble` before each batch."""

    def __init__(
        self,
        seconds: float = 0.0,
        trouble: Callable[[Sequence[Post]], None] = lambda posts: None,
    ) -> None:
        self.seconds, self.trouble = seconds, trouble
        self.batches: list[list[str]] = []
        self.manifest = SimpleNamespace(name="fake")
        self.gate = threading.Event()
        self.gate.set()

    def tag_batch(self, posts: Sequence[Post]) -> list[Result]:
        """First word of each post."""
        self.batches.append([post.text for post in posts])
        self.trouble(posts)
        assert self.gate.wait(30)
        time.sleep(self.seconds)
        return [
            Result(
                entities=expected_entities(post.text),
                image_used=post.image is not None,
                provider="fake",
                precision="fp32",
            )
            for post in posts
        ]
