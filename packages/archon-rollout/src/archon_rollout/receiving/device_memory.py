"""Device memory that another process on the same device opens by a handle.

``CudaMemory`` uses CUDA's memory handles. The interface is narrow, so that plans and bookkeeping of the transport
``ipc`` are tested with a fake device.
"""

from __future__ import annotations

import base64
from typing import Any, Protocol

import torch
from torch import Tensor

from archon_core.errors import ServerError
from archon_engine.compat import open_cuda_memory, share_cuda_memory


def has_device_memory() -> bool:
    """Whether this process has a device whose memory another process can open."""
    return torch.cuda.is_available()


class DeviceMemory(Protocol):
    """Allocates, exports and opens memory of one device."""

    def allocate(self, n_bytes: int) -> Tensor:
        """New memory, uint8 [n_bytes]."""

    def export(self, memory: Tensor) -> dict[str, Any]:
        """A handle of allocated memory, as a JSON object. Export memory once: each export keeps it alive."""

    def open(self, handle: dict[str, Any]) -> Tensor:
        """The memory of a handle from another process, uint8 [n_bytes]."""

    def synchronise(self) -> None:
        """Wait until all copies on the device are done, so that another process sees them."""


class CudaMemory:
    """Memory of the current CUDA device.

    Raises:
        ServerError: there is no CUDA device.
    """

    def __init__(self) -> None:
        if not has_device_memory():
            raise ServerError(
                "weight transport ipc: found no CUDA device; trainer and server must share one; use "
                "rollout.weight_transport=shm"
            )

    def allocate(self, n_bytes: int) -> Tensor:
        """See ``DeviceMemory``."""
        return torch.empty(n_bytes, dtype=torch.uint8, device="cuda")

    def export(self, memory: Tensor) -> dict[str, Any]:
        """See ``DeviceMemory``."""
        shared = share_cuda_memory(memory)
        uuid = str(torch.cuda.get_device_properties(memory.device).uuid)
        return {
            "device": uuid,
            "parts": [
                {"bytes": base64.b64encode(part).decode("ascii")} if isinstance(part, bytes) else part
                for part in shared
            ],
        }

    def open(self, handle: dict[str, Any]) -> Tensor:
        """See ``DeviceMemory``.

        Raises:
            ServerError: the memory is on another device.
        """
        device = torch.cuda.current_device()
        own = str(torch.cuda.get_device_properties(device).uuid)
        if handle.get("device") != own:
            raise ServerError(
                f"weight transport ipc: found memory of device {handle.get('device')}; this server runs on {own}; ipc "
                "needs trainer and server on one device; use rollout.weight_transport=shm"
            )
        parts = [
            base64.b64decode(part["bytes"], validate=True) if isinstance(part, dict) else part
            for part in handle["parts"]
        ]
        return open_cuda_memory(device, parts)

    def synchronise(self) -> None:
        """See ``DeviceMemory``."""
        torch.cuda.synchronize()
