"""Contracts of model architectures: the spec of a model package, and the interface of its module and arguments.

``contracts.module`` lists optional attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from archon_core.contracts.spec import Spec, load_target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from archon_core.contracts.packed import OutputName, PackedSequences


Capability = Literal["tp", "cp", "ep", "pp", "tied", "critic", "tree"]


@dataclass(frozen=True)
class LoadedModel:
    """The parts of a ``ModelSpec``, imported.

    Attributes:
        module: ``module(arguments, stage=None) -> nn.Module`` (``CausalModule``); with ``has_experts``,
            ``module(arguments, stage, builder)``.
        arguments: frozen dataclass with ``from_hf_config(config, *, critic)``.
        weight_map: ``weight_map(arguments) -> archon_core.models.weight_map.WeightMap``.
        parallel_plan: ``parallel_plan(arguments) -> archon_core.models.parallel_plan.ParallelPlan``.
        has_experts: whether the model has expert blocks, which another package builds.
    """

    module: Any
    arguments: Any
    weight_map: Any
    parallel_plan: Any
    has_experts: bool = False

    def build(self, arguments: Any, stage: Any = None, *, experts: Any = None) -> Any:
        """Build the module.

        Args:
            arguments: made by ``self.arguments``.
            stage: the pipeline stage to build; ``None`` for the whole model.
            experts: the ``MoEBuilder`` for a model with expert blocks; not used by others.
        """
        if not self.has_experts:
            return self.module(arguments, stage)
        assert experts is not None, "a model with experts needs a MoEBuilder"
        return self.module(arguments, stage, experts)


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A model architecture. ``target`` names the module class.

    Attributes:
        model_types: Hugging Face ``model_type`` values that this architecture serves.
        arguments: target of the arguments dataclass.
        weight_map: target of the function that makes the weight map.
        parallel_plan: target of the function that makes the parallel plan.
        tiny_config: target of a function ``() -> dict`` giving a Hugging Face config of this family that is
            small enough for tests.
        anatomy: target of a function ``(entries, *, critic=False) -> archon_core.models.anatomy.ModelAnatomy``, which
            reads the entries of a ``config.json`` and imports neither torch nor transformers; empty if the architecture
            cannot be planned.
        capabilities: axes and features that the architecture supports.
        needs: kinds of plugin that the model requires, such as ``"moe"``.
        rounds_inside: reason why its modules compute in fp32 whatever the dtype of their weights, as modules of other
            libraries may; empty for modules that never round below that dtype. ``archon verify`` compares such a model
            in fp32.
    """

    kind: ClassVar[str] = "model"
    hook: ClassVar[str] = "archon_models"

    model_types: tuple[str, ...] = ()
    arguments: str = ""
    weight_map: str = ""
    parallel_plan: str = ""
    tiny_config: str = ""
    anatomy: str = ""
    capabilities: frozenset[Capability] = frozenset()
    needs: tuple[str, ...] = ()
    rounds_inside: str = ""

    @property
    def takes_any(self) -> bool:
        """Whether the architecture serves every model type, so that it is chosen only by name."""
        return not self.model_types

    def load(self) -> LoadedModel:
        """Import module, arguments, weight map and parallel plan."""
        return LoadedModel(
            module=load_target(self.target, origin=self.origin),
            arguments=self.load_part("arguments"),
            weight_map=self.load_part("weight_map"),
            parallel_plan=self.load_part("parallel_plan"),
            has_experts="moe" in self.needs,
        )


class CausalModule(Protocol):
    """A decoder model. Parts that are not on this pipeline stage are ``None``.

    ``embed`` maps token ids [T] to hidden states [T, hidden]. ``layers`` is an ``nn.ModuleDict`` keyed by the layer's
    number in the whole model. ``norm`` and ``head`` make the outputs. A stage without ``embed`` takes hidden states; a
    stage without ``head`` returns them.
    """

    embed: nn.Module | None
    layers: nn.ModuleDict
    norm: nn.Module | None
    head: nn.Module | None

    def __call__(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[OutputName, Tensor]: ...


class ModelArguments(Protocol):
    """A frozen dataclass with a model's own sizes and options.

    It may also have ``decisions`` and ``attention_dropout``; see ``contracts.module``.
    """

    @classmethod
    def from_hf_config(cls, config: Any, *, critic: bool) -> ModelArguments:
        """Read a ``transformers`` config. Raises ``ModelError`` for settings that the architecture does not support."""
