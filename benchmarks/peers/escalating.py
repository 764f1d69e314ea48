"""The engine with escalation: low precision first, float32 where an answer is not certain."""

from collections.abc import Callable, Sequence
from typing import Any

from amlr.benchmarks.inputs import Picture
from amlr.runtime.engine import Engine
from amlr.runtime.results import Entity, Post

_CACHE_MB = 256


class EscalatingPeer:
    """Both tiers in one engine, as `precision="escalate"` loads them."""

    def __init__(self, bundle: str, provider: str, threads: int) -> None:
        """Load; `provider` is a name, or `auto`."""
        self._arguments = (bundle, provider, threads)
        self._engine, self._keeps = self._load(keep=True), True

    def _load(self, *, keep: bool) -> Engine:
        bundle, provider, threads = self._arguments
        return Engine.load(
            bundle,
            provider,
            "escalate",
            threads=threads,
            image_cache_mb=_CACHE_MB if keep else 0,
            check="off",
        )

    def prepare(self, posts: Sequence[Post], picture: Picture) -> Callable[[], Any]:
        """Build the timed call; on a `hit`, its first run fills the cache."""
        keep = picture == "hit"
        if keep != self._keeps:
            # One engine at a time, so that memory is that of serving.
            self._engine.close()
            self._engine, self._keeps = self._load(keep=keep), keep
        chosen = [Post(p.text, None if picture == "none" else p.image, p.words) for p in posts]
        engine = self._engine
        return lambda: engine.tag_batch(chosen)

    def entities(self, raw: Any) -> list[list[Entity]]:
        """Entities of each post."""
        return [list(result.entities) for result in raw]

    def close(self) -> None:
        """Release both tiers."""
        self._engine.close()
