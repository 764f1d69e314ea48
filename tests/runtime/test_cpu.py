from pathlib import Path

import pytest

from amlr.runtime import cpu


def test_cores_of_this_process() -> None:
    assert cpu.usable_cores() >= 1


def test_hyper_threads_and_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(cpu, "_CPUS", tmp_path)
    monkeypatch.setattr(cpu, "_QUOTA", quota)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cpu.usable_cores() == 4
    for text, expected in (
        ("max 100000\n", 4),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("900000 100000\n", 4),
        ("nonsense", 4),
    ):
        quota.write_text(text)
        assert cpu.usable_cores() == expected
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 4, 9}, raising=False)
    quota.unlink()
    assert cpu.usable_cores() == 2  # cores 0 and 9; 4 is a hyper-thread of 0


def test_model_names_the_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "_INFO", info)
    found = []
    for flags in ("avx2 amx", "avx2"):
        info.write_text(f"processor\t: 0\nmodel name\t: Fast\nflags\t\t: {flags}\n\nprocessor: 1\n")
        found.append(cpu.cpu_model())
    assert found[0] != found[1]
    assert all(name.startswith("Fast ") for name in found)
    info.unlink()
    assert cpu.cpu_model()
