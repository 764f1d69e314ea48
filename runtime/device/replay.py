"""Work on a stream that is captured in a CUDA graph when it comes back."""

import logging
from collections.abc import Callable

from amlr.kernels.device import Device, Graph, Stream

LOG = logging.getLogger("amlr.runtime")
# Work is captured when it comes back: capturing costs more than one run saves.
CAPTURE_AT = 2


class Replay:
    """Work that is enqueued piece by piece at first, and as one CUDA graph once it comes back.

    Attributes:
        captured: Whether there is a CUDA graph.
    """

    def __init__(self, device: Device, name: str, *, captures: bool) -> None:
        """Prepare; nothing is enqueued yet.

        Args:
            device: The device.
            name: What is run, for the log.
            captures: Whether all of it may be captured.
        """
        self._device, self._name, self._captures = device, name, captures
        self._count = 0
        self._graph: Graph | None = None

    @property
    def captured(self) -> bool:
        """Whether there is a CUDA graph."""
        return self._graph is not None

    def start(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        """Put the work on the stream.

        Args:
            stream: The session's stream.
            enqueue: Enqueues the pieces, always the same ones.
        """
        self._count += 1
        # The first run was the warm enqueue that a capture needs after a change of shape.
        if self._graph is None and self._captures and self._count >= CAPTURE_AT:
            self._capture(stream, enqueue)
        if self._graph is not None:
            self._graph.launch(stream)
        else:
            enqueue()

    def _capture(self, stream: Stream, enqueue: Callable[[], None]) -> None:
        try:
            with self._device.capture(stream) as graph:
                enqueue()
        # The library inside the capture has errors of its own; work that cannot be enqueued at all
        # fails again right after this, and is reported then.
        except Exception as error:
            self._captures = False
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            LOG.warning("%s is not captured in a CUDA graph: %s", self._name, reason)
            return
        self._graph = graph

    def close(self) -> None:
        """Free the graph; nothing of it may still be on the stream."""
        if self._graph is not None:
            self._graph.close()
            self._graph = None
