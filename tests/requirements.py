"""What a test needs and this machine may lack: skip with the reason, or fail where it is required.

`AMLR_REQUIRE` lists, separated by commas, what must be there (compiler, browser, gpu, ...): the
project's gate sets it, so that nothing is skipped there unnoticed.
"""

import os
import shutil

import pytest

_TOOLS = {
    "compiler": ("g++", "a C++ compiler (apt-get install g++)"),
    "browser": ("chromium", "a headless Chromium (apt-get install chromium)"),
    "compute-sanitizer": ("compute-sanitizer", "compute-sanitizer of the CUDA toolkit"),
}


def require(name: str, *, found: bool | None = None, reason: str = "") -> None:
    """Skip the calling test unless the requirement is met; fail if `AMLR_REQUIRE` names it.

    Args:
        name: "compiler", "browser", or any other name together with `found`.
        found: Whether it is there; None looks for the tool on the path.
        reason: What is missing, printed with the skip.
    """
    if found is None:
        tool, reason = _TOOLS[name]
        found = shutil.which(tool) is not None
    if found:
        return
    message = f"needs {name}: {reason}"
    if name in os.environ.get("AMLR_REQUIRE", "").split(","):
        pytest.fail(f"{message}; AMLR_REQUIRE names it, so it must be there")
    pytest.skip(message)
