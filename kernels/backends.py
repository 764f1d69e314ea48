"""Decoder backends by name, imported when first asked for."""

import importlib
from typing import Any

from amlr.errors import BackendUnavailableError, InputError

_MODULES = {"numba": "amlr.kernels.numba_backend", "cuda": "amlr.kernels.cuda"}
_loaded: dict[str, Any] = {}


def load_backend(name: str) -> Any:
    """The module that implements a backend other than "numpy".

    Raises:
        InputError: No backend has this name.
        BackendUnavailableError: Its library is not installed.
    """
    module = _loaded.get(name)
    if module is None:
        if name not in _MODULES:
            raise InputError(f"no decoder backend {name!r}; use numpy, {' or '.join(_MODULES)}")
        try:
            module = _loaded[name] = importlib.import_module(_MODULES[name])
        except ImportError as error:
            raise BackendUnavailableError(
                f"the {name} decoder needs {error.name or name}, which cannot be imported "
                f'({error}); install it with: pip install "amlr[{name}]", or use backend="numpy"'
            ) from error
    return module
