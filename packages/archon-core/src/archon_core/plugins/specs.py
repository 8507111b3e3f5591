"""What plugins return from their hooks: frozen descriptions that name their heavy parts as import targets.

A spec is cheap to make and to list. ``spec.load()`` imports what it names. The ``Protocol`` that the loaded
object satisfies stands in ``archon_core.protocols``.
"""

from __future__ import annotations

import importlib
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from archon_core.errors import ConfigError, PluginError
from archon_core.plugins.installing import update_advice

Capability = Literal["tp", "cp", "ep", "pp", "tied", "critic"]


def load_target(target: str, *, origin: str = "") -> Any:
    """Import ``"package.module:attribute"`` and return the attribute.

    Args:
        target: what to import.
        origin: distribution that named it, for the message.

    Raises:
        PluginError: the string has another form, the module does not import or has no such attribute.
    """
    described = f"target {target!r} of {origin}" if origin else f"target {target!r}"
    mend = f"; correct the spec, or update its package: {update_advice(origin)}" if origin else ""
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise PluginError(f"{described}: found no 'package.module:attribute'; write it in that form")
    try:
        loaded: Any = importlib.import_module(module_name)
    except Exception as error:
        # Whatever a module raises while it is imported, the user needs to know whose module it was.
        raise PluginError(
            f"{described}: importing {module_name!r} failed: {type(error).__name__}: {error}{mend}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(loaded, part):
            raise PluginError(f"{described}: {module_name!r} was imported but has no attribute {attribute!r}{mend}")
        loaded = getattr(loaded, part)
    return loaded


@dataclass(frozen=True)
class ConfigSection:
    """Options that a plugin adds to the configuration.

    Attributes:
        path: where they go: an existing section (``"actor"``), whose dataclass is extended, or a new one.
        schema: import target of a dataclass of which every field has a default. The module that holds it
            must not import torch: it is loaded whenever a configuration is read.
    """

    path: str
    schema: str


@dataclass(frozen=True)
class Spec:
    """What all kinds share.

    Attributes:
        name: what users write; unique per kind over all installed plugins.
        target: ``"package.module:attribute"`` of what ``load()`` returns.
        aliases: other names for the same thing; unique together with the names.
        summary: one line for ``archon plugins``.
        config: options that this spec adds to the configuration.
        origin: distribution that provides it; the registry fills it in. Empty when it was added in process.
    """

    kind: ClassVar[str]
    hook: ClassVar[str]

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    summary: str = ""
    config: tuple[ConfigSection, ...] = ()
    origin: str = field(default="", kw_only=True, compare=False)

    def load(self) -> Any:
        """Import and return what ``target`` names; see ``archon_core.protocols`` for its interface."""
        return load_target(self.target, origin=self.origin)

    def load_part(self, part: str) -> Any:
        """Import what another field names.

        Raises:
            PluginError: it is empty, or as ``load_target`` does.
        """
        target = getattr(self, part)
        if not target:
            origin = f" of {self.origin}" if self.origin else ""
            raise PluginError(
                f"{self.kind} {self.name!r}{origin}: its {part} is empty; the {type(self).__name__} names one as "
                "'package.module:attribute'"
            )
        return load_target(target, origin=self.origin)

    def as_data(self) -> dict[str, Any]:
        """All fields but ``origin``, as JSON has them: tuples and sets become lists, the latter sorted."""
        fields = {name: value for name, value in asdict(self).items() if name != "origin"}
        return {
            name: sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


@dataclass(frozen=True)
class LoadedModel:
    """The parts of a ``ModelSpec``, imported.

    Attributes:
        module: ``module(arguments, stage=None) -> nn.Module`` (``protocols.CausalModule``); with ``has_experts``,
            ``module(arguments, stage, builder)``.
        arguments: frozen dataclass with ``from_hf_config(config, *, critic)``.
        weight_map: ``weight_map(arguments) -> archon_core.models.weight_map.WeightMap``.
        parallel_plan: ``parallel_plan(arguments) -> archon_core.models.parallel_plan.ParallelPlan``.
        has_experts: whether the model's layers have experts, which another package builds.
    """

    module: Any
    arguments: Any
    weight_map: Any
    parallel_plan: Any
    has_experts: bool = False

    def build(self, arguments: Any, stage: Any = None, *, experts: Any = None) -> Any:
        """The module.

        Args:
            arguments: made by ``self.arguments``.
            stage: which part of the model; ``None`` for all.
            experts: the ``protocols.MoEBuilder`` of a model that has any.
        """
        if not self.has_experts:
            return self.module(arguments, stage)
        assert experts is not None, "a model with experts needs someone who builds them"
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
        capabilities: axes and features that the architecture supports.
        needs: kinds of plugin that it cannot do without, such as ``"moe"``.
        rounds_inside: why its modules compute in fp32 whatever the type of their weights, as those of other libraries
            may; empty for modules that never round below it. ``archon verify`` compares such a model in fp32.
    """

    kind: ClassVar[str] = "model"
    hook: ClassVar[str] = "archon_models"

    model_types: tuple[str, ...] = ()
    arguments: str = ""
    weight_map: str = ""
    parallel_plan: str = ""
    tiny_config: str = ""
    capabilities: frozenset[Capability] = frozenset()
    needs: tuple[str, ...] = ()
    rounds_inside: str = ""

    @property
    def takes_any(self) -> bool:
        """Whether it is for every model type, chosen by its name alone."""
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


@dataclass(frozen=True)
class ScheduleSpec(Spec):
    """A pipeline schedule. ``target`` names an ``archon_core.pipeline.ScheduleActions``.

    Attributes:
        stages_per_rank: how many stages each rank holds; ``None`` when any number from 2 works.
        placement: how stages are laid over ranks: round-robin (``loop``) or down and up again (``v``).
        splits_backward: whether input and weight gradients are separate actions.
        multiple_of_ranks: whether the number of micro-batches must be a multiple of that of pipeline ranks.
    """

    kind: ClassVar[str] = "schedule"
    hook: ClassVar[str] = "archon_schedules"

    stages_per_rank: int | None = 1
    placement: Literal["loop", "v"] = "loop"
    splits_backward: bool = False
    multiple_of_ranks: bool = False


@dataclass(frozen=True)
class PipelineSpec(Spec):
    """What cuts models into stages and runs schedules. ``target`` names a ``protocols.PipelinedRunnerFactory``.

    Attributes:
        split: target of a ``protocols.StageSplit``. The module that holds it must not import torch.
    """

    kind: ClassVar[str] = "pipeline"
    hook: ClassVar[str] = "archon_pipelines"

    split: str = ""


@dataclass(frozen=True)
class MoESpec(Spec):
    """A mixture-of-experts block. ``target`` names a ``protocols.MoEBuilderFactory``.

    Attributes:
        check: target of ``check(config, *, role, explicit, has_experts) -> list[str]``: what the options of the section
            ``role`` ask for and cannot have, one sentence each; ``has_experts`` is ``None`` where the model is not
            known. It must not import torch: dry runs call it.
    """

    kind: ClassVar[str] = "moe"
    hook: ClassVar[str] = "archon_moe"

    check: str = ""


@dataclass(frozen=True)
class TrainEngineSpec(Spec):
    """A training engine, named by the backend part of a layout. ``target`` names a ``protocols.TrainEngineFactory``.

    Attributes:
        letters: axis letters of the layout grammar that the backend knows.
        hybrid: whether ``(attn:...|ffn:...)`` is understood.
        axes: the letters that the engine of this version can run with a size above 1; others are refused by name.
        check: target of ``check(config, *, role, explicit) -> list[str]``: what the section ``role`` asks for and the
            engine of this version cannot do, one sentence each. It must not import torch: dry runs call it.
        model: name of the model spec that this engine runs whatever the model type; empty for the one that serves it.
    """

    kind: ClassVar[str] = "train_engine"
    hook: ClassVar[str] = "archon_train_engines"

    letters: str = "dtpcer"
    hybrid: bool = True
    axes: str = ""
    check: str = ""
    model: str = ""

    def chosen_model(self, asked: str | None, *, option: str) -> str | None:
        """The model spec to run when ``asked`` is the name that the user wrote under ``option``, if any.

        Raises:
            ConfigError: another one than this engine runs.
        """
        if not self.model or asked in (None, self.model):
            return self.model or asked
        raise ConfigError(
            f"{option}: found {asked!r}; the engine {self.name}: runs model {self.model!r}, whatever the model type; "
            f"leave {option} out, or write archon: in place of {self.name}:"
        )


@dataclass(frozen=True)
class InferenceEngineSpec(Spec):
    """A rollout engine. ``target`` names a ``protocols.InferenceEngineFactory``.

    Attributes:
        letters: axis letters that the backend knows; ``d`` is the number of servers. Empty: it runs on the
            trainer's own ranks and takes no sizes.
    """

    kind: ClassVar[str] = "inference_engine"
    hook: ClassVar[str] = "archon_inference_engines"

    letters: str = "d"


@dataclass(frozen=True)
class WeightTransportSpec(Spec):
    """A way for weights to reach inference servers. ``target`` names a ``protocols.WeightTransport``."""

    kind: ClassVar[str] = "weight_transport"
    hook: ClassVar[str] = "archon_weight_transports"


@dataclass(frozen=True)
class LauncherSpec(Spec):
    """A way to start a run's processes (``scheduler.type``). ``target`` names a ``protocols.Launcher``."""

    kind: ClassVar[str] = "launcher"
    hook: ClassVar[str] = "archon_launchers"


@dataclass(frozen=True)
class AlgorithmSpec(Spec):
    """A training algorithm. ``target`` names the algorithm's composition, which its trainer understands.

    Attributes:
        trainer: target of a ``protocols.TrainerFactory``.
        needs: kinds of plugin that it cannot do without, such as ``"inference_engine"`` or ``"reward"``.
    """

    kind: ClassVar[str] = "algorithm"
    hook: ClassVar[str] = "archon_algorithms"

    trainer: str = ""
    needs: tuple[str, ...] = ()

    def load_trainer(self) -> Any:
        """Import the trainer factory."""
        return self.load_part("trainer")


@dataclass(frozen=True)
class RewardSpec(Spec):
    """A reward. ``target`` names a ``protocols.Reward``."""

    kind: ClassVar[str] = "reward"
    hook: ClassVar[str] = "archon_rewards"


@dataclass(frozen=True)
class DatasetSpec(Spec):
    """A source of training records. ``target`` names a ``protocols.DatasetFactory``."""

    kind: ClassVar[str] = "dataset"
    hook: ClassVar[str] = "archon_datasets"


@dataclass(frozen=True)
class CommandSpec(Spec):
    """A subcommand of ``archon``. ``target`` names a function or ``typer.Typer``; it is imported when called."""

    kind: ClassVar[str] = "command"
    hook: ClassVar[str] = "archon_commands"


SPEC_TYPES: tuple[type[Spec], ...] = (
    ModelSpec,
    ScheduleSpec,
    PipelineSpec,
    MoESpec,
    TrainEngineSpec,
    InferenceEngineSpec,
    WeightTransportSpec,
    LauncherSpec,
    AlgorithmSpec,
    RewardSpec,
    DatasetSpec,
    CommandSpec,
)
