"""`amlr-bench`: parity first, then speed beside other systems in the same run."""

import json
import os
from collections.abc import Collection, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amlr.cli_support import AmlrCommand, log_to_stderr
from amlr.errors import AmlrError, InputError, ParityError
from amlr.whole import check_file, write_whole

if TYPE_CHECKING:  # `--help` must not wait for what a run needs
    from amlr.benchmarks.report.records import Report
    from amlr.runtime.bundle import Bundle

EXAMPLES = """\b
Examples:
  amlr-bench --engine amlr.plan --json bench.json --html bench.html
  amlr-bench --engine amlr.plan --data posts.jsonl --workloads cold,hit
  amlr-bench --engine amlr.plan --data posts.jsonl --parity-only
  amlr-bench --engine amlr.plan --provider openvino --precision fp32,bf16,int8
  amlr-bench --engine amlr.plan --budget 240 --workloads cold,hit --keep build/plain
  amlr-bench --merge cold.json --merge blocks.json --html all.html
  amlr-bench --compare before.json after.json
  amlr-bench --engine amlr.plan --capacity traffic.json --capacity-check 30 --html plan.html
"""
QUICK_S = 45.0
"""A quick run ends within a minute: the last call under way, and the report, come on top."""
_FILE = click.Path(path_type=Path, dir_okay=False)


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _chosen(
    text: str | None, what: str, choices: Collection[str], default: Iterable[str]
) -> tuple[str, ...]:
    """Names that an option lists.

    Raises:
        InputError: One of them is none of the choices.
    """
    if text is None:
        return tuple(default)
    names = _split(text)
    for name in names:
        if name not in choices:
            raise InputError(f"unknown {what} {name!r}; expected some of {', '.join(choices)}")
    return names


@click.command("bench", cls=AmlrCommand, epilog=EXAMPLES)
@click.option("--engine", type=click.Path(path_type=Path), help="Folder of the bundle.")
@click.option(
    "--data",
    default="sample",
    show_default=True,
    help="CoNLL file with IMGID lines, .jsonl of {id, text, image}, or `sample` (generated).",
)
@click.option("--images", type=click.Path(path_type=Path), help="Folder of pictures.")
@click.option("--limit", type=int, help="Most posts to compare.")
@click.option("--json", "json_path", type=_FILE, help="Write bench.json here.")
@click.option("--html", "html_path", type=_FILE, help="Write a self-contained page here.")
@click.option("--markdown", "markdown_path", type=_FILE, help="Write a Markdown table here.")
@click.option("--quick", is_flag=True, help="Small samples: under a minute for a small model.")
@click.option(
    "--budget",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="End after about this time: fewer rounds, the last workloads left out.",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the plain exports of the peers for the next run.",
)
@click.option("--workloads", help="Comma-separated; --workloads list shows them.")
@click.option("--peers", help="Comma-separated; --peers list shows them, `none` runs none.")
@click.option("--provider", default="auto", show_default=True, help="Comma-separated providers.")
@click.option("--precision", default="auto", show_default=True, help="Comma-separated.")
@click.option("--threads", default=1, show_default=True, help="CPU threads of every process.")
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu: processor time, for machines that other programs use.",
)
@click.option("--parity-only", is_flag=True, help="Compare entities only; measure no speed.")
@click.option("--calibration", is_flag=True, help="Calibration error; needs labelled --data.")
@click.option(
    "--compare",
    nargs=2,
    type=click.Path(path_type=Path),
    help="Compare two bench.json files instead of running.",
)
@click.option(
    "--merge",
    "merged",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Join reports instead of running; repeat the option for each report.",
)
@click.option(
    "--capacity", type=_FILE, help="Plan machines for this load; see docs/howto/capacity.md."
)
@click.option(
    "--capacity-check",
    type=click.FloatRange(0),
    default=0.0,
    metavar="SECONDS",
    help="Compare the plan with real servers for this time at each load.",
)
@click.option("--debug", is_flag=True, help="Show what peer processes print.")
def bench_command(**given: Any) -> None:
    """Compare an engine's entities with the eager model's, then its speed with other systems.

    Every system runs in its own process with the same number of threads; they take turns. Exit
    code 1: parity failed. Peers that cannot run are reported and left out.
    """
    from amlr.benchmarks.report.markdown import compare_reports
    from amlr.benchmarks.report.merge import merge_reports
    from amlr.benchmarks.report.schema import read_report

    if given["compare"]:
        before, after = map(read_report, given["compare"])
        _print(compare_reports(before, after), given)
        return
    if given["merged"]:
        _write(merge_reports([read_report(path) for path in given["merged"]]), given)
        return
    if "list" in (given["peers"], given["workloads"]):
        _list_choices(given)
        return
    if given["engine"] is None:
        raise InputError("nothing to measure; give --engine amlr.plan")
    if given["threads"] < 1:
        raise InputError(f"--threads must be at least 1, got {given['threads']}")
    from amlr.benchmarks.process import thread_variables

    # Results of an hour must not be lost for want of a place.
    for name in ("json_path", "html_path", "markdown_path"):
        if given[name] is not None:
            check_file(given[name])
    # Before any numeric library is imported: afterwards it is too late.
    os.environ |= thread_variables(1 if given["capacity"] else given["threads"])
    with log_to_stderr("amlr.benchmarks"):
        if given["capacity"]:
            _plan_capacity(given)
            return
        report = _run(given)
    _write(report, given)
    parity = report.parity
    if parity.verdict != "pass":
        raise ParityError(
            f"{parity.backend} {parity.precision} is not the eager model: {parity.reason}"
        )


def _list_choices(given: dict[str, Any]) -> None:
    from amlr.benchmarks.harness.workloads import CHOICES
    from amlr.benchmarks.systems.registry import PEERS

    peers = [f"{name:18} {entry.about}" for name, entry in PEERS.items()]
    click.echo("\n".join(peers if given["peers"] == "list" else CHOICES))


def _run(given: dict[str, Any]) -> "Report":
    from amlr.benchmarks.data import load_data
    from amlr.benchmarks.harness.session import RunOptions
    from amlr.benchmarks.harness.timing import Deadline
    from amlr.benchmarks.harness.workloads import CHOICES, HOST, QUICK
    from amlr.benchmarks.run import run_benchmark
    from amlr.benchmarks.systems.registry import PEERS
    from amlr.runtime.bundle import Bundle

    quick = given["quick"]
    groups = _chosen(given["workloads"] or None, "workload", CHOICES, QUICK if quick else CHOICES)
    groups = () if given["parity_only"] else groups
    default = [name for name, entry in PEERS.items() if entry.quick or not quick]
    peers = () if given["peers"] == "none" else _chosen(given["peers"], "peer", PEERS, default)
    bundle = Bundle.open(given["engine"])
    options = RunOptions(
        engine=given["engine"],
        providers=_split(given["provider"]),
        precisions=_split(given["precision"]),
        groups=tuple(group for group in groups if group != HOST),
        host=HOST in groups,
        calibration=given["calibration"],
        peers=peers,
        threads=given["threads"],
        clock=given["clock"],
        quick=quick,
        deadline=Deadline(given["budget"] or (QUICK_S if quick else None)),
        # A folder of its own for each bundle: its manifest has the hashes of all its files.
        exports=given["keep"] and given["keep"] / bundle.manifest_sha256[:16],
        debug=given["debug"],
    )
    _check_tiers(bundle, options.providers, options.precisions)
    data = load_data(given["data"], given["images"], given["limit"], 24 if quick else 512)
    if given["calibration"] and not any(item.gold is not None for item in data.posts):
        raise InputError(
            "--calibration needs labelled posts; give --data FILE in CoNLL form, or sample"
        )
    return run_benchmark(options, bundle, data)


def _check_tiers(bundle: "Bundle", providers: Sequence[str], precisions: Sequence[str]) -> None:
    """Refuse, before anything is started, what the bundle has no tier for."""
    from amlr.runtime.options import EngineOptions
    from amlr.runtime.tiers import list_tiers

    problems = []
    for provider, precision in product(providers, precisions):
        try:
            list_tiers(bundle.manifest, EngineOptions(provider=provider, precision=precision))
            return
        except AmlrError as error:
            problems.append(str(error))
    raise InputError("; ".join(problems))


def _write(report: "Report", given: dict[str, Any]) -> None:
    from amlr.benchmarks.report.html import render_html
    from amlr.benchmarks.report.markdown import render_markdown
    from amlr.benchmarks.report.schema import write_report

    table = render_markdown(report)
    if given["json_path"]:
        write_report(given["json_path"], report)
    if given["html_path"]:
        write_whole(given["html_path"], render_html(report))
    _print(table, given)


def _print(text: str, given: dict[str, Any]) -> None:
    if given["markdown_path"]:
        write_whole(given["markdown_path"], text)
    click.echo(text)


def _plan_capacity(given: dict[str, Any]) -> None:
    from amlr.benchmarks.capacity.measure import EngineChoice
    from amlr.benchmarks.capacity.page import render_page, render_text
    from amlr.benchmarks.capacity.plan import run_capacity
    from amlr.benchmarks.capacity.traffic import Traffic

    engine = EngineChoice(
        bundle=given["engine"], provider=given["provider"], precision=given["precision"]
    )
    traffic = Traffic.read(given["capacity"])
    report = run_capacity(engine, traffic, given["capacity_check"])
    if given["json_path"]:
        write_whole(
            given["json_path"], json.dumps(report.to_dict(), indent=1, allow_nan=False) + "\n"
        )
    if given["html_path"]:
        write_whole(given["html_path"], render_page(report))
    _print(render_text(report), given)


def main() -> None:
    """Entry point of `amlr-bench`."""
    bench_command()
