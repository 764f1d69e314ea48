"""The same chunks on Ray Data: stateful actors that write their parts themselves."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from amlr.errors import AmlrError
from amlr.extras import require_extra
from amlr.serving.archive.plan import Chunk
from amlr.serving.archive.tier import choose_tier, settle_tier
from amlr.serving.archive.worker import ChunkWorker, WorkerSettings

_STORE_BYTES = 100_000_000


class ChunkActor:
    """One engine in one actor; a batch is one chunk."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the engine; every actor that Ray starts anew does the same."""
        self._worker = ChunkWorker(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run chunks; a second run of one replaces its part by the same part."""
        chunks = [Chunk.from_dict(json.loads(text)) for text in batch["chunk"]]
        return {"report": [json.dumps(self._worker.run(chunk)) for chunk in chunks]}


def run_ray(
    settings: WorkerSettings, chunks: Sequence[Chunk], workers: int, address: str
) -> Iterator[dict[str, Any]]:
    """Reports of the chunks as they are finished.

    Args:
        settings: For every actor; addresses must be valid on every node.
        chunks: What is left to do.
        workers: Actors.
        address: Of a cluster, or `local` for one that lives as long as this call.

    Raises:
        InputError: Ray is not installed.
        AmlrError: An actor gives up on a chunk.
    """
    require_extra("--ray", "ray", "ray", "ray.data")
    import ray
    import ray.data

    count = min(workers, len(chunks))
    if address == "local":
        ray.init(
            address="local",
            num_cpus=count + 1,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        # This command draws its own line; what goes wrong is raised, not only logged.
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # On a node of the cluster: this machine's processor may be another.
        choose = ray.remote(num_cpus=1, max_retries=0)(choose_tier)
        settings = settle_tier(settings, lambda asked: ray.get(choose.remote(asked)))
        items = [{"chunk": json.dumps(asdict(chunk))} for chunk in chunks]
        made = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            ChunkActor,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=1,
        )
        for row in made.iter_rows():
            yield json.loads(row["report"])
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        last = str(cause).strip().splitlines()[-1]
        raise AmlrError(f"Ray could not finish: {last}; repair it, then --resume") from error
    finally:
        ray.shutdown()
