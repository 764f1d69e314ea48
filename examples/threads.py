"""A plain program with threads around one engine.

    python examples/threads.py amlr.plan < texts.txt

One engine serves any number of threads. Where throughput counts, hand it lists (`tag_batch`):
a batch of 16 costs far less than 16 single posts.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from amlr.runtime import Engine, Post


def chunks(lines: Iterator[str], size: int = 16) -> Iterator[list[Post]]:
    """Posts in groups."""
    while group := [Post(line.rstrip("\n")) for line in islice(lines, size)]:
        yield group


def main(plan: str) -> None:
    """Tag the lines of stdin, two batches at a time, answers in order."""
    with Engine.load(plan, threads=1) as engine, ThreadPoolExecutor(2) as pool:
        # map() would read all of stdin at once; groups of batches keep memory bounded.
        batches = chunks(iter(sys.stdin))
        while group := list(islice(batches, 8)):
            for results in pool.map(engine.tag_batch, group):
                for result in results:
                    print([(entity.label, entity.text) for entity in result.entities])


if __name__ == "__main__":
    main(sys.argv[1])
