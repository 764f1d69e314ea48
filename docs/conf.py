"""The documentation as a site: `make docs` builds it with Sphinx, and warnings are errors.

Nothing in the site is loaded from another place; `site_extension` fails a build that would be.
"""

import sys
from pathlib import Path

import amlr

sys.path.insert(0, str(Path(__file__).parent))

project = "amlr"
version = release = amlr.__version__
html_title = f"amlr {release}"
html_copy_source = False
html_show_copyright = False
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "site_extension",
]
exclude_patterns = ["measurements/**/*.jsonl"]
html_theme = "furo"
html_static_path = ["figures/site.css"]
html_css_files = ["site.css"]
highlight_language = "text"
smartquotes = False
# Docstrings write code in single backticks.
default_role = "code"
myst_heading_anchors = 4
myst_links_external_new_tab = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
