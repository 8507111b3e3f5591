"""The receiving end of the transport ``ipc``: opens the trainer's device buffers once, and copies tensors from them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from archon_core.contracts.weight_transport import WeightStore
from archon_core.errors import ServerError
from archon_core.receiving.checksum import bytes_of, checksum_of
from archon_core.receiving.shared_memory import view_tensor
from archon_core.serving.update import BucketNotice, UpdatePlan
from archon_rollout.receiving.device_memory import CudaMemory, DeviceMemory


class IpcReceiver:
    """Implements ``contracts.weight_transport.WeightReceiver``.

    Args:
        timeout: not used: nothing is waited for.
        memory: the device; ``None`` for CUDA.
    """

    def __init__(self, *, timeout: float, memory: DeviceMemory | None = None) -> None:
        self._memory = CudaMemory() if memory is None else memory
        self._buffers: list[Tensor] = []

    def begin(self, plan: UpdatePlan) -> None:
        """Open all buffers."""
        handles = plan.setup.get("handles")
        if not isinstance(handles, list | tuple) or not handles:
            raise ServerError(f"transport ipc: found setup {dict(plan.setup)}; expected handles of buffers")
        self._buffers = [self._memory.open(handle) for handle in handles]

    def receive(self, notice: BucketNotice, store: WeightStore) -> Mapping[str, str]:
        """Copy the tensors of a buffer. A buffer that was written again meanwhile has other checksums than the notice.

        Raises:
            ServerError: the buffer does not hold the announced tensors any more.
        """
        number = notice.place.get("buffer")
        if not isinstance(number, int) or not 0 <= number < len(self._buffers):
            raise ServerError(f"bucket {notice.index}: found buffer {number!r}; the update announced others")
        content, checksums = self._buffers[number], {}
        for entry, offset in notice.sent:
            values = view_tensor(content, entry, offset)
            store.put(entry.name, values)
            stored = store.stored(entry.name) if store.reads_back else values
            checksums[entry.name] = "" if stored is None else checksum_of(bytes_of(stored.cpu().contiguous()))
            if checksums[entry.name] != entry.checksum:
                raise ServerError(
                    f"bucket {notice.index}: {entry.name!r} has other values than announced; the trainer has reused "
                    "the buffer; this server is late and must not use these weights"
                )
        return checksums

    def end(self) -> None:
        """Close the buffers."""
        self._buffers = []
