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
