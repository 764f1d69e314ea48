"""`amlr-train` and `amlr-eval` from the outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from amlr.training.cli import train_command
from amlr.training.conll import read_conll, write_conll
from amlr.training.eval_cli import eval_command
from amlr.training.release import load_any_checkpoint
from amlr.training.sample import write_sample
from corpora import write_encoders


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One trained run of the command, with its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    text, image = write_encoders(folder / "encoders")
    data = write_sample(folder / "data", train=16, dev=8)
    (data / "images" / "train_0000.jpg").write_bytes(b"broken")
    arguments = ["--data", data, "--images", data / "images", "--out", folder / "best.pt"]
    arguments += ["--text-encoder", text, "--image-encoder", image, "--heads", 2]
    arguments += ["--epochs", 2, "--batch-size", 4, "--precision", "fp32", "--device", "cpu"]
    words = [str(argument) for argument in arguments]
    result = CliRunner().invoke(train_command, [*words, "--json"])
    assert result.exit_code == 0, result.output
    return {"folder": folder, "data": data, "arguments": words, "result": result}


def _eval(*arguments: object) -> Result:
    return CliRunner().invoke(eval_command, [str(argument) for argument in arguments])


def test_training_reports_and_leaves_its_files(trained: dict[str, Any]) -> None:
    values = json.loads(trained["result"].stdout)
    assert values["status"] == "done"
    assert set(values["dev"]) == {"joint", "segmental", "linear-chain", "argmax"}
    assert set(values["dev_without_pictures"]) == set(values["dev"])
    assert values["pictures"]["unreadable_ids"] == ["train_0000"]
    names = {path.name for path in trained["folder"].iterdir()}
    assert {"best.pt", "best.state.pt", "metrics.jsonl", "training.png"} <= names
    lines = (trained["folder"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines if '"step"' not in line] == [
        "epoch",
        "epoch",
        "final",
    ]
    checkpoint = load_any_checkpoint(trained["folder"] / "best.pt")
    assert checkpoint.decoder.bias == values["decoder"]["bias"]
    assert (
        checkpoint.provenance["dev_f1"]["joint"]["strict"] == values["dev"]["joint"]["strict"]["f1"]
    )
    assert checkpoint.provenance["calibration"] == values["calibration"]
    assert checkpoint.decoder.temperature == values["calibration"]["temperature"]
    assert values["calibration"]["posts"] + values["calibration"]["tuning_posts"] == 8
    assert "pictures:" in trained["result"].stderr


def test_evaluating_the_checkpoint_repeats_the_score(trained: dict[str, Any]) -> None:
    data = trained["data"]
    result = _eval(
        "--ckpt", trained["folder"] / "best.pt", "--data", data / "valid.txt",
        "--images", data / "images", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout)
    wanted = json.loads(trained["result"].stdout)["dev"]["joint"]
    assert values["decoders"]["joint"]["strict"] == wanted["strict"]
    assert values["decoders"]["joint"]["lenient"] == wanted["lenient"]
    assert values["posts"] == 8


def test_resuming_a_finished_run_changes_nothing_and_other_settings_are_refused(
    trained: dict[str, Any],
) -> None:
    again = CliRunner().invoke(train_command, [*trained["arguments"], "--resume", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["dev"] == json.loads(trained["result"].stdout)["dev"]
    other = CliRunner().invoke(train_command, [*trained["arguments"], "--resume", "--lr", "1"])
    assert other.exit_code == 2
    assert "belongs to another run" in other.stderr


def test_a_bundle_is_scored_in_the_corpus_names(tiny_plan: Path, tmp_path: Path) -> None:
    posts = read_conll(write_sample(tmp_path / "data", train=4, dev=8) / "valid.txt")
    renamed = [
        type(post)(
            words=post.words,
            tags=tuple(tag.replace("OTHER", "MISC") for tag in post.tags),
            image_id=post.image_id,
        )
        for post in posts
    ]
    write_conll(tmp_path / "misc.txt", renamed)
    images = tmp_path / "data" / "images"
    result = _eval("--engine", tiny_plan, "--data", tmp_path / "misc.txt", "--images", images)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("decoder")
    assert "pictures:" in result.stdout
    values = json.loads(
        _eval("--engine", tiny_plan, "--data", tmp_path / "misc.txt", "--json").stdout
    )
    (report,) = values["decoders"].values()
    assert "OTHER" not in report["strict"]["per_type"]
    assert report["strict"]["gold"] == sum(len(post.entities) for post in posts)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--out", "x.pt"], "--sample"),
        (["--out", "x.pt", "--sample", "--data", "d"], "leave --data"),
        (["--out", "x.pt", "--data", "absent", "--text-encoder", "a"], "absent"),
        (["--out", "x.pt", "--data", "absent", "--epochs", "0"], "epochs"),
    ],
)
def test_bad_training_input_is_one_line(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = ["--image-encoder", "b"]
    result = CliRunner().invoke(train_command, [*arguments, *image])
    assert result.exit_code == 2
    assert part in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_bad_evaluation_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "posts.txt").write_text("a\tO\n")
    for arguments in ([], ["--ckpt", tmp_path / "no.pt"], ["--engine", tmp_path / "no.plan"]):
        result = _eval("--data", tmp_path / "posts.txt", *arguments)
        assert result.exit_code == 2
        assert len(result.stderr.strip().splitlines()) == 1


_INTERRUPTS = """
import signal
from amlr.training.cli import _stop_on_signals

before = signal.getsignal(signal.SIGINT)
with _stop_on_signals() as should_stop:
    assert not should_stop()
    signal.raise_signal(signal.SIGINT)
    assert should_stop()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("stopped at once")
assert signal.getsignal(signal.SIGINT) is before
"""


def test_an_interrupt_stops_gently_once_and_at_once_the_second_time() -> None:
    # In a process of its own: a signal ends one in which OpenVINO has run an int8 model.
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTS], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "stopped at once\n"), done.stderr
    assert "again to abort" in done.stderr
