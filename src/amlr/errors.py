"""All public errors. Every message says what was found, what was expected and how to fix it."""


class AmlrError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(AmlrError, ValueError):
    """A post, picture, file or option the user gave cannot be used.

    Attributes:
        code: Stable machine-readable name, e.g. `"image_unreadable"`.
    """

    def __init__(self, message: str, code: str = "invalid_input") -> None:
        super().__init__(message)
        self.code = code


class ShapeError(AmlrError, ValueError):
    """An array has the wrong shape, dtype or range."""


class CheckpointError(AmlrError):
    """A checkpoint cannot be read, or does not hold what it must."""


class BundleError(AmlrError):
    """A bundle is missing, damaged, or of another schema."""


class ExportError(AmlrError):
    """A graph or an engine could not be produced."""


class ParityError(AmlrError):
    """An exported variant does not give the numbers or entities of the eager model."""


class PlanMismatchError(AmlrError, RuntimeError):
    """An engine was built for another library, version or device."""


class BackendUnavailableError(AmlrError, ImportError):
    """A library or device that was asked for is not here."""


class OverloadedError(AmlrError):
    """More work was offered than can be done in time."""
