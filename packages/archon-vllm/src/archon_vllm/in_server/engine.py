"""The weight transfer engine: vLLM's interface to ``StagedUpdates``.

``init_transfer_engine`` starts an update, ``receive_weights`` runs its actions. Only the action ``commit`` touches the
model; the driver has paused generation then. vLLM's own session between start and finish does nothing here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from archon_vllm.in_server.packing import pack_tied_layers
from archon_vllm.in_server.staging import StagedUpdates, incarnation_of


@dataclass
class UpdatePlanInfo(WeightTransferInitInfo):
    """``init_info`` of ``/init_weight_transfer_engine``.

    Attributes:
        plan: an ``UpdatePlan`` as JSON.
    """

    plan: dict[str, Any] = field(default_factory=dict)


@dataclass
class UpdateAction(WeightTransferUpdateInfo):
    """``update_info`` of ``/update_weights``.

    Attributes:
        action: see ``StagedUpdates.act``.
        data: its argument.
    """

    action: str = ""
    data: Any = None


class ArchonWeightTransferEngine(WeightTransferEngine[UpdatePlanInfo, UpdateAction]):
    """One per worker. Every worker stages all tensors; the model takes its part when it loads them."""

    init_info_cls = UpdatePlanInfo
    update_info_cls = UpdateAction
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: Any, model: Any) -> None:
        super().__init__(config, vllm_config, device, model)
        self.updates = StagedUpdates(self._load, incarnation=incarnation_of(vllm_config.instance_id))

    def init_transfer_engine(self, init_info: UpdatePlanInfo) -> None:
        """Start an update."""
        self.updates.begin(init_info.plan)

    def start_weight_update(self) -> None:
        """Nothing: the model is touched on commit."""

    def receive_weights(self, update_info: UpdateAction) -> None:
        """Run an action."""
        self.updates.act(update_info.action, update_info.data)

    def finish_weight_update(self) -> None:
        """End the session after a commit or an abort."""
        self.updates.finish()

    def shutdown(self) -> None:
        """Forget an unfinished update."""
        self.updates.drop()

    def _load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        initialize_layerwise_reload(self.model)
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors)
        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_layers(self.model)
