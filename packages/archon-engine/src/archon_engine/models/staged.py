"""The pipeline stages that one process holds, as one module.

Parameters keep the names that they have in the whole model. A stage is a child of ``StagedModule``, so code that needs
names iterates over ``stages_of(module)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from archon_core.contracts.packed import OutputName, PackedSequences
from archon_core.ranks.ranks import Ranks

PassThrough = Callable[[Tensor, PackedSequences], dict[OutputName, Tensor]]


class StagedModule(nn.Module):
    """Stages of a decoder.

    Calling it runs the whole model: it takes token ids [T] and returns the head's outputs, equal on every process of
    the pipeline. All these processes must call it.

    Args:
        stages: stage index -> module.
        whole: the whole model, on the meta device.

    Attributes:
        stages: stage index as text -> module.
    """

    def __init__(self, stages: Mapping[int, nn.Module], whole: nn.Module) -> None:
        super().__init__()
        self._whole = (whole,)  # in a tuple, so that it is not registered as a submodule
        self.stages = nn.ModuleDict({str(number): stage for number, stage in stages.items()})
        self._pass_through: PassThrough | None = None
        self._pipeline = Ranks()

    @property
    def pipeline(self) -> Ranks:
        """The processes that together hold all stages."""
        return self._pipeline

    def connect(self, pass_through: PassThrough, pipeline: Ranks) -> None:
        """Set the function that passes tokens through all stages, and the ranks of these. The pipeline's runner calls
        this."""
        self._pass_through = pass_through
        self._pipeline = pipeline

    def forward(self, x: Tensor, packed: PackedSequences) -> dict[OutputName, Tensor]:
        """See the class."""
        assert self._pass_through is not None, "connect() comes before the first forward pass"
        return self._pass_through(x, packed)


def outline_of(module: nn.Module) -> Any:
    """The whole model, for its sizes and the types of its parts: ``module`` itself, or the model that it holds stages
    of. Its weights may be on the meta device."""
    return module._whole[0] if isinstance(module, StagedModule) else module


def stages_of(module: nn.Module) -> list[Any]:
    """The stages in a module, or the module itself without pipeline parallelism."""
    return list(module.stages.values()) if isinstance(module, StagedModule) else [module]


def pipeline_of(module: nn.Module) -> Ranks:
    """The processes that together hold all stages of the model, this one among them."""
    return module.pipeline if isinstance(module, StagedModule) else Ranks()
