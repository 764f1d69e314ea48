"""One version everywhere, and lower bounds that `make oldest` can install."""

import re
from pathlib import Path

import amlr
from oldest import oldest

ROOT = Path(__file__).parents[1]


def test_the_newest_version_of_the_changelog_is_this_one() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", text, re.MULTILINE)
    assert versions[0] == amlr.__version__
    assert versions == sorted(versions, reverse=True)


def test_deployment_examples_name_this_version() -> None:
    images = re.findall(r"amlr-ray:(\S+)", (ROOT / "deploy" / "kuberay.yaml").read_text())
    assert set(images) == {amlr.__version__}


def test_small_installations_have_one_lower_bound_each() -> None:
    rows = oldest(ROOT / "pyproject.toml")
    names = [row.partition("==")[0] for row in rows]
    assert {"numpy", "click", "starlette", "pyarrow"} <= set(names)
    assert len(names) == len(set(names))
