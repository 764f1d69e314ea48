"""Ray for tests: imported with its own warnings kept to itself."""

import importlib.util
import warnings

from requirements import require


def require_ray() -> None:
    """Skip the calling test where Ray is missing; else import what tests use of it."""
    found = importlib.util.find_spec("ray") is not None
    require("ray", found=found, reason='pip install "amlr[ray]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray.serve.schema  # noqa: F401
