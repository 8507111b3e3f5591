"""Methods that ``/collective_rpc`` calls on vLLM's workers; vLLM adds this class to the bases of its worker."""

from __future__ import annotations

from typing import Any


class ArchonWorkerExtension:
    """Reads what the weight transfer engine of this worker knows."""

    weight_transfer_engine: Any
    _weight_update_active: bool

    def archon_state(self) -> dict[str, Any]:
        """State of the weights, and whether vLLM's session is open."""
        return {**self.weight_transfer_engine.updates.state(), "session": self._weight_update_active}

    def archon_receipt(self) -> dict[str, Any]:
        """Receipt of the last action, from this worker's memory."""
        return self.weight_transfer_engine.updates.receipt()

    def archon_abort(self, version: int) -> dict[str, Any]:
        """Drop an unfinished update, also after vLLM closed its session because of an error."""
        self.weight_transfer_engine.updates.act("abort", version)
        return self.archon_state()
