"""Imports onnxruntime, or says in one line why it cannot be used."""

import contextlib
import io
import logging
from typing import Any

from amlr.errors import BackendUnavailableError

LOG = logging.getLogger("amlr.runtime")
_REINSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install"


def import_onnxruntime() -> Any:
    """The library.

    Raises:
        BackendUnavailableError: Not installed, or damaged: onnxruntime and onnxruntime-gpu install
            into one folder, so removing or updating one of them breaks the other.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise _damaged(str(error)) from error
        raise BackendUnavailableError(
            f"onnxruntime cannot be imported ({error}); install it with: pip install onnxruntime"
        ) from error
    # A broken library fails in any way: missing names, missing or foreign shared objects.
    except Exception as error:
        raise _damaged(str(error) or type(error).__name__) from error
    # What pip leaves of the folder still imports, as a package that holds nothing.
    missing = [
        name
        for name in ("InferenceSession", "SessionOptions", "get_available_providers")
        if not hasattr(onnxruntime, name)
    ]
    if missing:
        raise _damaged(f"it has no {missing[0]}")
    return onnxruntime


def import_with_cuda() -> Any:
    """As `import_onnxruntime`, ready for CUDA.

    Raises:
        BackendUnavailableError: Not installed, damaged, or without CUDA.
    """
    onnxruntime = import_onnxruntime()
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackendUnavailableError(
            f"this onnxruntime has no CUDA; replace it: {_REINSTALL} onnxruntime-gpu"
        )
    if hasattr(onnxruntime, "preload_dlls"):
        # CUDA and cuDNN usually lie in wheels of their own, where the loader does not look. What
        # it prints must not get between the lines of a command's output.
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            onnxruntime.preload_dlls()
        for line in printed.getvalue().splitlines():
            LOG.warning("onnxruntime: %s", line)
    return onnxruntime


def _damaged(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"onnxruntime is installed but damaged ({reason.splitlines()[0]}); onnxruntime and "
        f"onnxruntime-gpu share a folder, so remove both and install one: {_REINSTALL} onnxruntime"
        " (or onnxruntime-gpu)"
    )
