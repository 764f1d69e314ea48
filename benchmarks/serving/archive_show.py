"""Archives measured: one process, several, Ray Data; runs that are killed and resumed.

python -m amlr.benchmarks.serving.archive_show --engine amlr.plan --posts posts.jsonl \
        --images photos --rows 100000 --out build/archive
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click

from amlr.benchmarks.harness.process import memory_mib
from amlr.benchmarks.serving.processes import family
from amlr.cli_support import AmlrCommand
from amlr.errors import InputError

_RUN = [sys.executable, "-c", "from amlr.serving.archive.cli import tag_main; tag_main()"]
_PATH = click.Path(path_type=Path)
_SUMMARY = "_run/summary.json"
_SAMPLE_S = 10.0
RUNS = ("one", "local", "killed", "ray", "ray-killed")


@click.command(cls=AmlrCommand)
@click.option("--engine", type=_PATH, required=True)
@click.option("--posts", type=_PATH, required=True, help="JSON lines {text, image}.")
@click.option("--images", type=_PATH, required=True)
@click.option("--rows", type=int, default=100_000, show_default=True)
@click.option("--one-process-rows", type=int, default=10_000, show_default=True)
@click.option("--workers", type=int, default=2, show_default=True)
@click.option("--chunk-rows", default=1000, show_default=True)
@click.option("--provider", default="auto", show_default=True)
@click.option("--out", type=_PATH, required=True, help="Folders of the runs; theirs are emptied.")
@click.option("--grouped", is_flag=True, help="Sort by picture, and tell amlr-tag so.")
@click.option("--runs", "chosen", type=click.Choice(RUNS), multiple=True, help="Default: all.")
def main(
    engine: Path,
    posts: Path,
    images: Path,
    rows: int,
    one_process_rows: int,
    workers: int,
    chunk_rows: int,
    provider: str,
    out: Path,
    grouped: bool,
    chosen: tuple[str, ...],
) -> None:
    """Print one JSON line a run; compare rows and entities of all runs in the folder."""
    out.mkdir(parents=True, exist_ok=True)
    few, many = out / "few.jsonl", out / "many.jsonl"
    _write_rows(posts, few, min(rows, one_process_rows), grouped)
    _write_rows(posts, many, rows, grouped)
    common = ["--engine", str(engine), "--image-root", str(images), "--provider", provider]
    common += ["--chunk-rows", str(chunk_rows)] + ["--group-by-picture"] * grouped
    for name in chosen or RUNS:
        shutil.rmtree(out / name, ignore_errors=True)
        source, count = (few, 1) if name == "one" else (many, workers)
        command = [*_RUN, *common, "--input", str(source), "--output", str(out / name)]
        command += ["--workers", str(count)] + ["--ray"] * ("ray" in name)
        if "killed" in name:
            _kill_on_the_way(command, out / name)
            command.append("--resume")
        click.echo(json.dumps({"run": name} | _measure(command)))
    click.echo(json.dumps(_verdict(out)))


def _verdict(out: Path) -> dict[str, Any]:
    """Rows, sameness and speed of the runs that are there, against `local` and `one`."""
    found = [name for name in RUNS if (out / name / _SUMMARY).is_file()]
    rates = {
        name: json.loads((out / name / _SUMMARY).read_text())["posts_per_second"] for name in found
    }
    first = _entities(out / "local")
    verdict = {}
    for name in found:
        rows = _entities(out / name)
        verdict[name] = {
            "rows": len(rows),
            "same_as_local": all(entities == first.get(i) for i, entities in rows.items()),
            "times_one_process": round(rates[name] / rates["one"], 2) if "one" in rates else None,
        }
    return verdict


def _write_rows(posts: Path, path: Path, count: int, grouped: bool) -> None:
    try:
        lines = [json.loads(line) for line in posts.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"{posts} holds no JSON lines: {error}") from error
    rows = [
        {"id": f"row-{i}", "text": post["text"], "image": post["image"]}
        for i, post in zip(range(count), itertools.cycle(lines), strict=False)
    ]
    if grouped:
        rows.sort(key=lambda row: str(row["image"]))
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _measure(command: list[str]) -> dict[str, Any]:
    """Run to the end; the summary and the peak memory of all its processes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    peak = [0.0]
    over = threading.Event()

    def sample() -> None:
        # Rarely: adding up the pages of Ray's many processes takes a good part of a core.
        while not over.wait(_SAMPLE_S):
            members = family(process.pid)
            peak[0] = max(peak[0], sum(memory_mib(pid, shared=False) for pid in members))

    watcher = threading.Thread(target=sample)
    watcher.start()
    output, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise click.ClickException(f"a run ended with code {process.returncode}")
    summary: dict[str, Any] = json.loads(output.splitlines()[-1])
    return summary | {"peak_mib": round(peak[0])}


def _kill_on_the_way(command: list[str], out: Path) -> None:
    """SIGKILL a worker twice and then the driver, each after some parts more."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    for step in range(3):
        while len(list(out.glob("part-*"))) < step + 1:
            if process.poll() is not None:
                raise click.ClickException("the run ended before it could be killed; more --rows")
            time.sleep(0.05)
        victims = [pid for pid in family(process.pid)[1:] if _is_worker(pid)]
        os.kill(process.pid if step == 2 else victims[0], signal.SIGKILL)
    process.wait()


def _is_worker(pid: int) -> bool:
    """A process of `amlr-tag`, or an actor of Ray Data."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"spawn_main" in command or b"ray::MapWorker" in command
    except OSError:
        return False


def _entities(out: Path) -> dict[str, Any]:
    """Entities by id; fails where an id appears twice."""
    import pyarrow.parquet as pq

    rows = [
        (row["id"], [(e["start"], e["end"], e["label"]) for e in row["entities"]])
        for path in sorted(out.glob("part-*.parquet"))
        for row in pq.read_table(path, columns=["id", "entities"]).to_pylist()
    ]
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    if twice:
        raise click.ClickException(f"{len(twice)} ids appear more than once in {out}")
    return dict(rows)


if __name__ == "__main__":
    main()
