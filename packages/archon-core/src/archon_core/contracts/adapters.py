"""Contracts of adapters: a few trainable parameters beside a model whose own weights stay as they are.

An adapter package adds parameters to the modules of any model, by their roles in the parallel plan. So it works on
every axis that the model supports, and no model mentions it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from archon_core.contracts.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archon_core.contracts.decisions import Decision
    from archon_core.models.box import Box
    from archon_core.models.parallel_plan import ParallelPlan
    from archon_core.models.weight_map import ResolvedMap


@dataclass(frozen=True)
class AdapterSpec(Spec):
    """A kind of adapter. ``target`` names an ``AdapterFactory``.

    Attributes:
        option: the boolean option of a role's section that switches it on.
        preview: target of ``preview(config, *, role, explicit) -> EnginePreview``: problems and decisions about its
            options in the section ``role``, whether it is switched on or not. ``explicit`` are the options that the
            user wrote. It must not import torch: dry runs call it.
        file_options: target of ``file_options(file_config) -> dict``, which reads the options of a role's section from
            the content of an ``adapter_config.json``. Servers build their adapters with them.
        file_type: the file's ``peft_type``.
    """

    kind: ClassVar[str] = "adapter"
    hook: ClassVar[str] = "archon_adapters"

    option: str = ""
    preview: str = ""
    file_options: str = ""
    file_type: str = ""


CopyBox = Callable[[str, "Box", "Tensor | None"], None]
"""Copies a box of a named weight into a tensor; it may gather from other ranks. The tensor is ``None`` on ranks that
only send. All ranks must call it for the same boxes in the same order."""


class Adapter(Protocol):
    """The adapters of one model."""

    @property
    def source(self) -> str | None:
        """The folder whose adapters training starts from; ``None`` to draw new ones from the seed."""

    def attach(self, module: nn.Module, plan: ParallelPlan, weights: ResolvedMap) -> None:
        """Add the adapters' parameters to a model or a stage of it, on the meta device, in place; freeze all others.

        Args:
            module: the model, or a stage with the module names of the whole model.
            plan: the model's plan.
            weights: the map of the model's own weights.

        Raises:
            ConfigError: an option names modules that the model does not have, that cannot be adapted, or for whose
                adapters the files' format has no place.
        """

    def extend(self, plan: ParallelPlan) -> ParallelPlan:
        """The plan with the roles of the adapters' parameters. Call it after ``attach`` of the whole model."""

    def weight_map(self, weights: ResolvedMap, shapes: Mapping[str, tuple[int, ...]]) -> ResolvedMap:
        """Names of the adapters' parameters here and in files.

        Args:
            weights: the map of the model's own weights.
            shapes: our name -> shape of the adapters' parameters in the whole model.
        """

    def merged(self, copy: CopyBox) -> CopyBox:
        """``copy``, but of the model's weights with the adapters' products added."""

    def switched_off(self, module: nn.Module) -> AbstractContextManager[None]:
        """Inside the context, forward passes of ``module`` compute with the model's own weights alone.

        Args:
            module: a module that ``attach`` has changed, or one that contains such modules.
        """

    def file_config(self, base: str | None) -> Mapping[str, Any]:
        """The content of ``adapter_config.json``.

        Args:
            base: path or id of the model that is adapted; ``None`` if it was not loaded.
        """

    def decisions(self, *, role: str) -> Sequence[Decision]:
        """Parts of the model that stay without adapters although no option leaves them out."""


class AdapterFactory(Protocol):
    """``target`` of an ``AdapterSpec``. ``config`` is the role's section; ``role`` is its name, for messages."""

    def __call__(self, config: Any, *, role: str) -> Adapter: ...
