"""Ask a running server: `amlr-serve --engine amlr.plan`, then `python examples/client.py`."""

import asyncio
import sys

from amlr.runtime import Post
from amlr.serving.client import AsyncClient, Client

POSTS = [Post("Kevin Love at Quicken Loans Arena"), Post("Paris in May"), Post("no names here")]


def main(url: str) -> None:
    """One post, several, and many at the same time."""
    with Client(url) as client:
        for entity in client.tag(POSTS[0].text).entities:
            print(entity.label, repr(entity.text), f"{entity.score:.2f}")
        for post, result in zip(POSTS, client.tag_batch(POSTS), strict=True):
            print(post.text, "->", [entity.text for entity in result.entities])
    print(asyncio.run(count(url)), "entities in 100 concurrent requests")


async def count(url: str) -> int:
    """Concurrent requests meet in one batch on the server."""
    async with AsyncClient(url) as client:
        results = await asyncio.gather(*(client.tag(POSTS[i % 3].text) for i in range(100)))
    return sum(len(result.entities) for result in results)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
