"""What is remembered of a chunk whose worker died: attempts, and the row it died at.

Two plain attempts, then the chunk runs row by row with a note of each row before it is begun; a row
at which the process died twice is kept with an error and never touched again.
"""

from typing import Any

from amlr.errors import AmlrError
from amlr.serving.archive.places import Folder

PLAIN = 2
_DEATHS = 2
_MOST = 40


class Tries:
    """Attempts at one chunk, kept in the output folder so that they outlive any process."""

    def __init__(self, folder: Folder, chunk: int) -> None:
        """Count one more attempt.

        Raises:
            AmlrError: Workers die again and again; the machine is to blame, not the rows.
        """
        self._folder, self._name = folder, f"_run/tries/{chunk:05d}.json"
        found: dict[str, Any] = folder.read_json(self._name) or {}
        self.starts: int = found.get("starts", 0) + 1
        self.deaths: dict[str, int] = found.get("deaths", {})
        at = found.get("at")
        if at is not None:
            self.deaths[str(at)] = self.deaths.get(str(at), 0) + 1
        if self.starts > _MOST:
            raise AmlrError(
                f"workers died {_MOST} times on part {chunk}; is memory short? "
                "try fewer --workers, then --resume"
            )
        self._save(None)

    @property
    def is_careful(self) -> bool:
        """Whether to go row by row."""
        return self.starts > PLAIN

    def is_poison(self, number: int) -> bool:
        """Whether the process died too often at this row."""
        return self.deaths.get(str(number), 0) >= _DEATHS

    def begin(self, number: int) -> None:
        """Note the row before it is touched."""
        self._save(number)

    def finish(self) -> None:
        """Forget: the part is written."""
        self._folder.remove(self._name)

    def _save(self, at: int | None) -> None:
        values = {"starts": self.starts, "deaths": self.deaths, "at": at}
        self._folder.write_json(self._name, values)
