"""The two TensorRT families behind one import: enterprise `tensorrt` and `tensorrt-rtx`.

Only names that exist in TensorRT 10.13+, TensorRT 11 and TensorRT-RTX are used anywhere; the tables
in tests/export/tensorrt_api.json hold them and the tests compare.
"""

import importlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amlr.errors import BackendUnavailableError
from amlr.runtime.engine_record import version_numbers

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
MESSAGES_KEPT = 100
_LOGGERS: dict[int, Any] = {}
_OLDEST = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 1)}


@dataclass(frozen=True, slots=True, eq=False)
class TensorRT:
    """One imported library.

    Attributes:
        family: `tensorrt` or `tensorrt-rtx`.
        version: Full version, e.g. `1.7.1.116`.
        api: The module.
    """

    family: str
    version: str
    api: Any

    @property
    def is_rtx(self) -> bool:
        """Whether engines are finished on the device, from a plan built anywhere."""
        return self.family == "tensorrt-rtx"

    @property
    def name(self) -> str:
        """Library and version as folders and manifests name them."""
        return f"{self.family}-{self.version}"

    def logger(self) -> Any:
        """The process's `ILogger`, which collects messages in `.errors` and `.warnings`.

        The libraries keep the first logger they are given and ignore later ones, so there is one.
        """
        if id(self.api) not in _LOGGERS:
            _LOGGERS[id(self.api)] = collecting_logger(self.api)
        return _LOGGERS[id(self.api)]


def load_tensorrt(family: str, module: Any = None) -> TensorRT:
    """Import a family's Python module.

    Args:
        family: `tensorrt` or `tensorrt-rtx`.
        module: Stands in for the import; for tests.

    Raises:
        BackendUnavailableError: Not installed, not loadable, or too old.
    """
    if module is None:
        try:
            module = importlib.import_module(_MODULES[family])
        # A wheel without its libraries fails with OSError or RuntimeError, not with ImportError.
        except (ImportError, OSError, RuntimeError) as error:
            raise BackendUnavailableError(
                f"{family} cannot be imported ({error}); install it with: "
                f'pip install "amlr[{family}]"'
            ) from error
    version = str(module.__version__)
    if version_numbers(version) < _OLDEST[family]:
        oldest = ".".join(map(str, _OLDEST[family]))
        raise BackendUnavailableError(
            f"{family} {version} is installed, {oldest} or newer is needed; "
            f'upgrade it with: pip install --upgrade "amlr[{family}]"'
        )
    return TensorRT(family, version, module)


def collecting_logger(api: Any) -> Any:
    """Make an `ILogger` that keeps what the library says instead of printing it."""

    class Collector(api.ILogger):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self) -> None:
            api.ILogger.__init__(self)
            # Bounded: a long-lived server must not collect messages for ever.
            self.errors: deque[str] = deque(maxlen=MESSAGES_KEPT)
            self.warnings: deque[str] = deque(maxlen=MESSAGES_KEPT)
            self.logged = 0

        def log(self, severity: Any, message: str) -> None:
            level = str(severity).rpartition(".")[2]
            if level in ("ERROR", "INTERNAL_ERROR"):
                self.errors.append(message)
                self.logged += 1
            elif level == "WARNING":
                self.warnings.append(message)

    return Collector()


@contextmanager
def last_errors(logger: Any) -> Iterator[list[str]]:
    """Give the list that will hold the errors logged inside the block."""
    start = logger.logged
    errors: list[str] = []
    try:
        yield errors
    finally:
        count = min(logger.logged - start, len(logger.errors))
        errors.extend(list(logger.errors)[len(logger.errors) - count :])
