"""What the site needs beside Sphinx: examples of commands as code, and two checks.

Links of the files beside docs/ must lead somewhere, and nothing may be loaded from elsewhere.
Sphinx itself checks the links and anchors between pages.
"""

import re
from pathlib import Path
from typing import Any

import click
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# Files of the root folder whose relative links must lead somewhere.
_ROOT_FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
# What a browser fetches by itself: scripts, styles, pictures, fonts. A plain link is not.
_LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)[^>]*\ssrc=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|<link[^>]*\shref=["']?(?:https?:)?//[^"'\s>]+"""
    r"""|url\(\s*["']?(?:https?:)?//[^)]+|@import\s+["'](?:https?:)?//[^"']+"""
)


def check_root_links(app: Sphinx) -> None:
    """Refuse links of the root files that lead nowhere."""
    root = Path(app.srcdir).parent
    broken = [
        f"{name}: {target}"
        for name in _ROOT_FILES
        if (root / name).is_file()
        for target in _LINK.findall((root / name).read_text(encoding="utf-8"))
        if "://" not in target and not (root / target).exists()
    ]
    if broken:
        raise ExtensionError("links that lead nowhere: " + ", ".join(broken))


def check_site(app: Sphinx, error: Exception | None) -> None:
    """Refuse a site whose pages or styles load anything from another place."""
    if error is not None:
        return
    site = Path(app.outdir)
    loaded = [
        f"{path.relative_to(site)}: {match}"
        for path in sorted(site.rglob("*"))
        if path.suffix in (".html", ".css")
        for match in _LOADED.findall(path.read_text(encoding="utf-8"))
    ]
    if loaded:
        raise ExtensionError("the site would load from elsewhere: " + ", ".join(loaded))


def examples_as_code(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Show the examples at the end of a command's help as they are, not as running text."""
    # sphinx-click has made a line block of them.
    rows = [line.removeprefix("|").strip() for line in lines]
    rows = [row for row in rows if row not in ("", "\b", "Examples:")]
    if rows:
        code = (f"   {row}" for row in rows)
        lines[:] = [".. rubric:: Examples", "", ".. code-block:: shell", "", *code, ""]


def plain_stars(app: Sphinx, context: click.Context, lines: list[str]) -> None:
    """Keep a single star in a help text a star; two are sphinx-click's own bold type."""
    lines[:] = [re.sub(r"(?<!\*)\*(?!\*)", r"\\*", line) for line in lines]


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect all of it to a build."""
    app.connect("builder-inited", check_root_links)
    app.connect("build-finished", check_site)
    app.connect("sphinx-click-process-epilog", examples_as_code)
    app.connect("sphinx-click-process-options", plain_stars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
