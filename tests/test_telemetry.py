"""No word to anyone: no host looked up, nothing written outside the given folders.

Three watchers: Python's audit hooks, what appears in the home folder, and, where strace is
installed, the system calls of native libraries and of worker processes.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import amlr.telemetry
from amlr.training.sample import write_sample
from corpora import write_encoders
from drawings import saved, smooth

WATCHED = Path(__file__).parent / "watched.py"
_EXPORT = ("amlr.export.cli", "export_command")
_TAG = ("amlr.serving.archive.cli", "tag_command")
# fontconfig's own cache: training draws a plot, and matplotlib asks for the fonts of the system.
_HARMLESS = ("/dev/", "/proc/", "/sys/", "/var/cache/fontconfig/")
_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT")
_HAS_STRACE = shutil.which("strace") is not None
_TRACED = "connect,sendto,sendmsg,openat,mkdir,mkdirat,rename,unlink"


def _providers() -> list[str]:
    names = {"onnxruntime": "onnxruntime-cpu", "openvino": "openvino"}
    return [name for module, name in names.items() if importlib.util.find_spec(module)]


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(home: Path) -> dict[str, str]:
    """Nobody has set a switch; relative folders of the import path still work elsewhere."""
    kept = {
        name: text
        for name, text in os.environ.items()
        if name not in amlr.telemetry.SWITCHES
        and not name.startswith(("XDG_", "AMLR_", "TORCH", "MPL"))
    }
    path = os.pathsep.join(str(Path(place).absolute()) for place in sys.path)
    return kept | {"HOME": str(home), "PYTHONPATH": path}


class Seen:
    """What one watched process did."""

    def __init__(self, folder: Path, commands: list[Any], **environment: str) -> None:
        """Run commands with an empty home and no switch set; `folder` is what they may write to."""
        home = folder / "home"
        (folder / "work" / "tmp").mkdir(parents=True)
        home.mkdir()
        trace, report = folder / "trace", folder / "work" / "report.json"
        port = _port()
        strace = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={_TRACED}", "-o", trace]
        before = strace if _HAS_STRACE else []
        words = [
            [module, name, [str(word).replace("PORT", str(port)) for word in arguments]]
            for module, name, arguments in commands
        ]
        done = subprocess.run(
            [str(word) for word in (*before, sys.executable, WATCHED, report, port)],
            input=json.dumps(words),
            env=_environment(home)
            | {"TMPDIR": str(folder / "work" / "tmp"), "OMP_NUM_THREADS": "1"}
            | {"PYTHONDONTWRITEBYTECODE": "1"}
            | environment,
            cwd=folder / "work",
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found = json.loads(report.read_text())
        self.peers: list[str] = [
            peer for peer in found["peers"] if peer not in ("127.0.0.1", "localhost", "::1")
        ]
        self.paths: list[str] = found["paths"]
        if trace.exists():
            self._read(trace.read_text(errors="replace"), folder / "work")
        self.paths = sorted(
            {path for path in self.paths if not path.startswith((str(folder / "work"), *_HARMLESS))}
        )
        found = [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]
        self.home = sorted(name for name in found if "fontconfig" not in name)

    def _read(self, trace: str, cwd: Path) -> None:
        for line in trace.splitlines():
            match = _CALL.match(line)
            if match is None:
                continue
            call, rest = match.groups()
            if call in ("connect", "sendto", "sendmsg"):
                if "AF_INET" in rest and "127.0.0.1" not in rest and "::1" not in rest:
                    self.peers.append(rest)
            # A lookup of a name that does not exist yet is no write; a relative one lies in a
            # folder that was opened before.
            elif call != "openat" or _WRITES.search(rest):
                name = rest.partition('"')[2].partition('"')[0]
                self.paths.append(str(cwd / name))


def test_load_tag_serve_archive_and_additions_say_nothing(tiny_plan: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    commands: list[Any] = [
        (*_EXPORT, ["--from", tiny_plan, "--out", work / "a.plan", "--quiet"]),
        (*_EXPORT, ["--from", tiny_plan, "--triton", work / "triton", "--quiet"]),
        ("amlr.runtime.cli", "inspect_command", [tiny_plan]),
    ]
    for provider in _providers():
        load = ["--engine", tiny_plan, "--provider", provider]
        archive = ["--input", tmp_path / "posts.jsonl", "--output", work / provider]
        serve = ["--host", "127.0.0.1", "--port", "PORT"]
        commands += [
            (*_TAG, [*load, "--text", "Jordan in Paris", "--image", tmp_path / "a.png"]),
            (*_TAG, [*load, *archive, "--workers", 1]),
            ("amlr.serving.cli", "serve_command", [*load, *serve]),
        ]
    (tmp_path / "a.png").write_bytes(saved(smooth()))
    post = {"id": 1, "text": "Jordan in Paris", "image": str(tmp_path / "a.png")}
    (tmp_path / "posts.jsonl").write_text(json.dumps(post))
    _assert_silent(Seen(tmp_path, commands))


def test_training_evaluation_and_export_say_nothing(tiny_pt: Path, tmp_path: Path) -> None:
    work, data = tmp_path / "work", write_sample(tmp_path / "data", train=4, dev=2)
    text, image = write_encoders(tmp_path / "encoders")
    train = ["--data", data, "--images", data / "images", "--heads", 2, "--epochs", 1]
    train += ["--text-encoder", text, "--image-encoder", image, "--device", "cpu"]
    places = ["--out", work / "best.pt", "--cache-dir", work / "cache"]
    score = ["--ckpt", work / "best.pt", "--data", data / "valid.txt"]
    commands = [
        ("amlr.training.cli", "train_command", [*train, *places]),
        ("amlr.training.eval_cli", "eval_command", score),
        (*_EXPORT, ["--ckpt", tiny_pt, "--out", work / "a.plan", "--quiet"]),
    ]
    _assert_silent(Seen(tmp_path, commands))


def _assert_silent(seen: Seen) -> None:
    assert (seen.peers, seen.home, seen.paths) == ([], [], [])


def test_the_watchers_see_a_command_that_talks(tmp_path: Path) -> None:
    # What libraries report depends on the machine they run on, so a command of our own talks.
    seen = Seen(tmp_path, [("talkative", "talk_command", [])])
    assert any("203.0.113.1" in peer for peer in seen.peers)
    assert seen.home == ["Maker/report.json"]
    if _HAS_STRACE:
        assert any("203.0.113.2" in peer for peer in seen.peers)
        assert any(path.endswith("elsewhere/native.json") for path in seen.paths)


def _installed() -> set[str]:
    return {str(found.name).replace("_", "-") for found in importlib.metadata.distributions()}


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("ray", "from ray._common.usage import usage_lib as u; print(u.usage_stats_enabled())"),
        (
            "huggingface_hub",
            "from huggingface_hub import constants as c; print(not c.HF_HUB_DISABLE_TELEMETRY)",
        ),
        # NNCF and OpenVINO look for it by importing it.
        (
            "openvino_telemetry",
            "import sys; print('openvino_telemetry' not in sys.modules)",
        ),
    ],
)
def test_each_library_takes_its_switch(module: str, code: str, tmp_path: Path) -> None:
    if module.replace("_", "-") not in _installed():
        pytest.skip(f"{module} is not installed")

    def ask(**environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "import amlr; " + code],
            env=_environment(tmp_path) | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1]

    assert ask() == "False"
    assert ask(AMLR_TELEMETRY="1") == "True"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("AMLR_TELEMETRY", raising=False)
    amlr.telemetry.switch_off()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
