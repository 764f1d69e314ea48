"""Imports onnxruntime, or says in one line why it cannot be used."""

from typing import Any

from amlr.errors import BackendUnavailableError

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


def _damaged(reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"onnxruntime is installed but damaged ({reason.splitlines()[0]}); onnxruntime and "
        f"onnxruntime-gpu share a folder, so remove both and install one: {_REINSTALL} onnxruntime"
        " (or onnxruntime-gpu)"
    )
