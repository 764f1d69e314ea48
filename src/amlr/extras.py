"""Optional packages: one message names what needs them and how to install them."""

import importlib

from amlr.errors import AmlrError, InputError


def missing_extra(user: str, error: ImportError, extra: str) -> str:
    """The message for a package that is not installed, or that refuses to be imported.

    Args:
        user: What needs it, e.g. a command or an option.
        error: The failed import.
        extra: Name of the extra that brings it.
    """
    install = f'pip install "amlr[{extra}]"'
    # A package that is installed and refuses, say beside an old NumPy, names nothing.
    if error.name is None:
        return (
            f"{user} needs a package that cannot be imported ({error}); repair it with: {install}"
        )
    return (
        f"{user} needs the package {error.name!r}, which is not installed; "
        f"install it with: {install}"
    )


def require_extra(
    user: str, extra: str, *packages: str, error_class: type[AmlrError] = InputError
) -> None:
    """Import packages that a base install lacks.

    Raises:
        AmlrError: One is missing; of the given class.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise error_class(missing_extra(user, error, extra)) from error
