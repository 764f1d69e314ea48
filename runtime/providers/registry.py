"""Names of providers, which of them `auto` tries, and the variants they may run."""

import importlib
from collections.abc import Callable
from typing import Any

from amlr.errors import BackendUnavailableError, InputError
from amlr.runtime.bundle import Bundle
from amlr.runtime.manifest import Manifest, Variant
from amlr.runtime.providers.base import Provider, ProviderOptions

Factory = Callable[[Bundle, Variant, ProviderOptions], Provider]

# Every name that a user may ask for, and its factory.
PROVIDERS = {
    "tensorrt": "amlr.runtime.device.tensorrt:open_tensorrt",
    "tensorrt-rtx": "amlr.runtime.device.tensorrt:open_tensorrt_rtx",
    "onnxruntime-cuda": "amlr.runtime.device.onnxruntime:open_cuda",
    "openvino": "amlr.runtime.providers.openvino:OpenVinoProvider",
    "onnxruntime-cpu": "amlr.runtime.providers.onnxruntime:OnnxRuntimeProvider",
}
# `auto` takes the first of the devices that serves, and without one the fastest of the CPU's: it
# times them once, and again when the package changes. A name in neither is taken only if asked for.
DEVICES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
CPU_PACKAGES = {"openvino": "openvino", "onnxruntime-cpu": "onnxruntime"}
CPUS = tuple(CPU_PACKAGES)
GROUPS = {"auto": (*DEVICES, *CPUS), "onnxruntime": ("onnxruntime-cuda", "onnxruntime-cpu")}


def provider_names(provider: str) -> tuple[str, ...]:
    """Providers to try, in order, for what the user asked.

    Raises:
        InputError: No provider has this name.
    """
    if provider in GROUPS:
        return GROUPS[provider]
    if provider in PROVIDERS:
        return (provider,)
    raise InputError(
        f"unknown provider {provider!r}; expected one of {', '.join([*GROUPS, *PROVIDERS])}"
    )


def open_provider(
    name: str, bundle: Bundle, variant: Variant, options: ProviderOptions
) -> Provider:
    """Import a provider's module and start it.

    Raises:
        BackendUnavailableError: Not part of this installation, or its library or device is absent.
    """
    module, _, attribute = PROVIDERS[name].partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise BackendUnavailableError(f"this version of amlr has no provider {name!r}") from error
    return factory(bundle, variant, options)


def admitted_variants(
    manifest: Manifest, provider: str, precision: str, max_changed: float = 0.0
) -> list[tuple[str, Variant]]:
    """Variants that a provider may serve, most wanted first.

    Args:
        manifest: The bundle's.
        provider: A name of `PROVIDERS`.
        precision: `auto` (fp32, and before it variants measured within `max_changed` where that
            is above 0), `exact` (fp32), or a precision by name, whatever its parity.
        max_changed: Largest share of changed entities for `auto`; 0 admits only fp32, because a
            record of unchanged entities on some posts is no promise for others.

    Returns:
        Names and variants, perhaps none.
    """
    wanted = "fp32" if precision == "exact" else precision
    fitting = [
        (name, variant) for name, variant in manifest.variants.items() if runs_on(variant, provider)
    ]
    if wanted != "auto":
        return [(name, variant) for name, variant in fitting if variant.precision == wanted]
    admitted = [item for item in fitting if _is_admitted(item[1], max_changed)]
    return sorted(admitted, key=lambda item: item[1].precision == "fp32")


def runs_on(variant: Variant, provider: str) -> bool:
    """Whether a variant is for this provider.

    A variant's name may be the beginning of several: `onnxruntime` means `onnxruntime-cpu` and
    `onnxruntime-cuda`, so what is made for `openvino` is for an `openvino-gpu`, too.
    """
    return variant.provider in (None, provider) or provider.startswith(f"{variant.provider}-")


def _is_admitted(variant: Variant, max_changed: float) -> bool:
    if variant.precision == "fp32" or max_changed <= 0:
        return variant.precision == "fp32"
    changed: Any = variant.parity.get("changed_entities")
    total: Any = variant.parity.get("entities")
    # Unmeasured is not the same as unchanged.
    if not isinstance(changed, int) or not isinstance(total, int) or total < 1:
        return False
    return changed <= max_changed * total
