from pathlib import Path

import pytest

from amlr.runtime import cpu


def test_cores_of_this_process() -> None:
    assert cpu.usable_cores() >= 1


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 8 CPUs on 4 cores without any control group."""
    for number in range(8):
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(cpu, "_CPUS", tmp_path)
    monkeypatch.setattr(cpu, "_PROCESS", tmp_path / "self")
    monkeypatch.setattr(cpu, "_CGROUPS", tmp_path / "cgroups")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    return tmp_path


def test_hyper_threads_and_quotas(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu.usable_cores() == 4
    for text, expected in (
        ("max 100000\n", 4),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("900000 100000\n", 4),
        ("100000 0\n", 4),
        ("nonsense", 4),
    ):
        _write_quota(machine / "cgroups", 2, text)
        assert cpu.usable_cores() == expected
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 4, 9}, raising=False)
    assert cpu.usable_cores() == 2  # cores 0 and 9; 4 is a hyper-thread of 0


def _write_quota(folder: Path, version: int, quota: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "cpu.max").write_text(quota)
    else:
        micros, period = quota.split()
        (folder / "cpu.cfs_quota_us").write_text("-1\n" if micros == "max" else f"{micros}\n")
        (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


def _mount(machine: Path, version: int, point: Path, root: str, path: str) -> None:
    """Tell the process that its group is `path` and that `point` shows the tree from `root` on."""
    kind = "cgroup2 cgroup2 rw" if version == 2 else "cgroup cgroup rw,cpu,cpuacct"
    controllers = "0:" if version == 2 else "4:cpu,cpuacct"
    (machine / "self" / "mountinfo").write_text(
        "22 27 0:21 / /proc rw - proc proc rw\n"
        "24 31 0:27 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
        f"31 23 0:28 {root} {point} rw,nosuid shared:9 - {kind}\n"
    )
    (machine / "self" / "cgroup").write_text(f"9:cpuset:/elsewhere\n{controllers}:{path}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("place", ["host", "container", "sub-group", "foreign", "namespace"])
def test_the_smallest_quota_on_the_way_up_counts(machine: Path, version: int, place: str) -> None:
    # Names as systemd, Docker and cgroup namespaces give them.
    root, path, visible = {
        "host": ("/", "/system.slice/amlr.service", ("", "system.slice", "amlr.service")),
        "container": ("/docker/ab12", "/docker/ab12", ("",)),
        "sub-group": ("/docker/ab12", "/docker/ab12/a/b", ("", "a", "b")),
        "foreign": ("/docker/ab12", "/kubepods/pod7", ("",)),
        "namespace": ("/", "/", ("",)),
    }[place]
    point = machine / "mounted"
    _mount(machine, version, point, root, path)
    # The group of another service must not matter.
    _write_quota(point / "system.slice" / "other.service", version, "100000 100000")
    folders = [point.joinpath(*visible[: depth + 1]) for depth in range(len(visible))]
    for tight in range(len(folders)):
        for number, folder in enumerate(folders):
            _write_quota(folder, version, "200000 100000" if number == tight else "300000 100000")
        assert cpu.usable_cores() == 2, tight
    for folder in folders:
        _write_quota(folder, version, "max 100000")
    assert cpu.usable_cores() == 4


@pytest.mark.parametrize("name", ["cpu", "cpu,cpuacct"])
def test_a_version_1_quota_is_seen_without_a_list_of_mounts(machine: Path, name: str) -> None:
    _write_quota(machine / "cgroups" / name, 1, "100000 100000")
    assert cpu.usable_cores() == 1


def test_groups_outside_a_namespace_are_passed_over(machine: Path) -> None:
    _mount(machine, 2, machine / "mounted", "/", "/../../sibling")
    _write_quota(machine / "sibling", 2, "100000 100000")
    assert cpu.usable_cores() == 4


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
