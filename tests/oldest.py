"""The oldest versions that the base, `serve` and `archive` installations allow, one a line.

`python tests/oldest.py` prints them for pip: every `name>=version` of pyproject.toml as
`name==version`. `make oldest` runs tests with them.
"""

import re
import tomllib
from pathlib import Path

EXTRAS = ("serve", "archive")
_BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)(?P<marker>\s*;.*)?")


def oldest(pyproject: Path) -> list[str]:
    """Requirements with their lower bounds as the only version.

    Raises:
        ValueError: A requirement of these has no lower bound, or more than that.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    rows = []
    for requirement in [
        *project["dependencies"],
        *(row for name in EXTRAS for row in extras[name]),
    ]:
        bound = _BOUND.fullmatch(requirement)
        if bound is None:
            raise ValueError(f"{requirement!r}: expected name>=version")
        rows.append(f"{bound['name']}=={bound['version']}{bound['marker'] or ''}")
    return rows


if __name__ == "__main__":
    print("\n".join(oldest(Path(__file__).parents[1] / "pyproject.toml")))
