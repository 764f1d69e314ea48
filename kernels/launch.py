"""Kernels of a bundle on a device: found or compiled once, then launched by device pointer.

The decoders are in `launch_linear` and `launch_segmental`. A launch does not synchronise with the
host and allocates nothing, so it can be captured in a graph.

Every pointer is an integer address of a C-contiguous device array. Nothing here checks what the
arrays hold, for that would need a synchronisation; the kernels answer NaN, +inf and malformed units
with a NaN score. Everything is loaded when an object is built, so that a launch never compiles.
"""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from amlr.errors import AmlrError, BackendUnavailableError, ShapeError
from amlr.kernels.device import Device, DeviceError, Module, Stream
from amlr.kernels.images import KernelRecord, KernelSpec, compile_image, find_images

Compile = Callable[[KernelSpec, str], bytes]

WARPS_PER_BLOCK = 4
BLOCK_THREADS = 32 * WARPS_PER_BLOCK
# What a block may have without an opt-in, on every architecture.
SHARED_LIMIT = 48 << 10


class KernelLibrary:
    """Compiled kernels of one device, each loaded once.

    An image is looked for in this order: a cubin of the bundle, its PTX, NVRTC on the spot.
    """

    def __init__(
        self,
        device: Device,
        *,
        folder: Path | None = None,
        records: Iterable[KernelRecord] = (),
        compile_with: Compile = compile_image,
    ) -> None:
        """Prepare a library.

        Args:
            device: Where the kernels run.
            folder: A bundle's `kernels/` folder, if there is one.
            records: The manifest's `kernels` list.
            compile_with: The last resort, for an architecture such as `sm_90`.
        """
        self.device = device
        self.origins: dict[KernelSpec, str] = {}
        self._folder = folder
        self._records = tuple(records)
        self._compile = compile_with
        self._modules: dict[KernelSpec, Module] = {}
        self._lock = threading.Lock()

    def function(self, spec: KernelSpec, kernel: str) -> Any:
        """A kernel ready to launch.

        Raises:
            BackendUnavailableError: No image fits this device, and none can be made here.
        """
        with self._lock, self.device.current():
            if spec not in self._modules:
                self._modules[spec], self.origins[spec] = self._load(spec)
            return self._modules[spec].function(spec.function(kernel))

    def _load(self, spec: KernelSpec) -> tuple[Module, str]:
        refusals = []
        if self._folder is not None:
            for path in find_images(self._folder, self._records, spec, self.device.sm):
                try:
                    return self.device.load_module(path.read_bytes()), path.name
                except DeviceError as error:  # PTX that is newer than the driver, above all
                    refusals.append(f"{path.name}: {error}")
        architecture = f"sm_{self.device.sm}"
        try:
            return self.device.load_module(self._compile(spec, architecture)), "compiled here"
        except AmlrError as error:
            found = "; ".join(refusals) or "no image in the bundle's kernels/ folder fits"
            raise BackendUnavailableError(
                f"the CUDA decoder {spec.source} (Y = {spec.tags}) cannot run on "
                f"{self.device.name} ({architecture}): {found}; compiling it here "
                f"failed too: {error}"
            ) from error


def launch_blocks(
    library: KernelLibrary,
    function: Any,
    stream: Stream,
    blocks: int,
    shared_bytes: int,
    *args: Any,
) -> None:
    """Launch blocks of four warps, one or more for each post or sequence.

    Raises:
        ShapeError: A block needs more shared memory than there is.
    """
    if not blocks:
        return
    if shared_bytes > SHARED_LIMIT:
        raise ShapeError(
            f"the CUDA decoder would need {shared_bytes} bytes of shared memory per sequence, and "
            f"{SHARED_LIMIT} are there; shorten the sequences (512 steps always fit)"
        )
    library.device.launch(
        function,
        grid=blocks,
        block=BLOCK_THREADS,
        shared_bytes=shared_bytes,
        stream=stream,
        arguments=args,
    )


def pointers(*addresses: int) -> list[np.uint64]:
    """Addresses as kernel arguments."""
    return [np.uint64(address) for address in addresses]
