"""What a library must offer so that a device session can run a bundle's graphs through it."""

from collections.abc import Mapping
from typing import Protocol

from amlr.kernels.device import Stream
from amlr.runtime.device.shapes import Limits
from amlr.runtime.engine_record import Shape


class BoundGraph(Protocol):
    """One graph with shapes and addresses fixed, ready to be enqueued again and again."""

    def bind(
        self,
        inputs: Mapping[str, Shape],
        outputs: Mapping[str, Shape],
        addresses: Mapping[str, int],
        scratch: tuple[int, int],
        stream: Stream,
    ) -> None:
        """Fix shapes and device addresses of all tensors.

        Args:
            inputs: Shape of each input.
            outputs: Shape of each output.
            addresses: Device address of each input and output.
            scratch: Address and bytes of memory the graph may use while it runs.
            stream: The session's stream.

        Raises:
            PlanMismatchError: The engine takes no such shapes.
            DeviceError: The library refused an address, or lacks a shape.
        """

    def enqueue(self, stream: Stream) -> None:
        """Run on the session's stream, without waiting.

        Raises:
            DeviceError: The launch failed; holds the library's reason.
        """


class LoadedGraph(Protocol):
    """One graph that a library has loaded for a stream.

    Attributes:
        inputs: Names of the inputs: ids int64, hidden states, regions and pixels float32.
        outputs: Names of the outputs, float32.
        scratch_bytes: Device memory a bound graph needs while it runs; 0 where the library
            allocates for itself.
        captures: Whether the session may capture it in a CUDA graph. A graph that copies from the
            host within a run may not: the replay would read what the host has there by then.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scratch_bytes: int
    captures: bool

    def bound(self) -> BoundGraph:
        """A graph to bind; the library may hold memory for it until it is dropped."""


class DeviceEngines(Protocol):
    """A bundle's graphs in one library, on one device.

    Attributes:
        name: The provider's name.
        precision: Of the graphs.
        limits: Largest shapes the graphs take.
        stages: Graphs that turn ids into scores, in order: `text` and `fusion`, or one that holds
            both.
        most_sessions: Sessions that may run side by side.
        weight_bytes: Device memory of the weights of all sessions.
        working_bytes: Device memory of all sessions that is neither weights nor in a session's own
            buffers.
        larger: What to do where a window exceeds the limits, for error messages.
    """

    name: str
    precision: str
    limits: Limits
    stages: tuple[str, ...]
    most_sessions: int
    weight_bytes: int
    working_bytes: int
    larger: str

    def load(self, stream: Stream) -> Mapping[str, LoadedGraph]:
        """The graphs of `stages` and `image`, for work on this stream."""

    def close(self) -> None:
        """Give memory back and write caches; the device's context is current."""
