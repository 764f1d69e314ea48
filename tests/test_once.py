"""Work shared by the processes of a run is done once, also while others wait for it."""

import threading
import time
from pathlib import Path

import pytest

from once import once


def test_who_waits_finds_it_done(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(place: Path) -> None:
        time.sleep(0.2)
        place.mkdir()
        made.append(place)

    threads = [threading.Thread(target=once, args=(tmp_path / "a", make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert once(tmp_path / "a", make) == tmp_path / "a"
    assert made == [tmp_path / "a"]


def test_what_failed_is_made_again(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        once(tmp_path / "a", fail)
    assert once(tmp_path / "a", Path.touch).exists()
