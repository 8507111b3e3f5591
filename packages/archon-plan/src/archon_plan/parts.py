"""An engine to plan, and the parts that it would be assembled from: model, schedule, stages.

Everything here asks the functions that a run asks, so that a plan has the stages of the run.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from types import SimpleNamespace

from archon_core.contracts.engine import TrainEngineSpec
from archon_core.contracts.model import ModelSpec
from archon_core.contracts.pipeline import (
    PIPELINE,
    Action,
    ActionKind,
    PipelineSpec,
    RankActions,
    ScheduleSpec,
    StagePlan,
)
from archon_core.layout import Layout
from archon_core.models.anatomy import ModelAnatomy, WeightShape
from archon_core.plugins import Registry
from archon_core.selection import select_schedule
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_plan.models import NamedModel

HEAD_RECOMPUTES = 4 / 3
"""Cost of a head against its products: backward computes the logits again (``archon_engine.assembly.stages``)."""


@dataclass(frozen=True)
class Sequences:
    """The sequences of one optimizer step.

    Attributes:
        number: over all data ranks; ``None`` for as many as fill ``mb_spec.n_mbs`` micro-batches of
            ``mb_spec.max_tokens_per_mb`` tokens on each data rank.
        length: mean number of tokens of one.
        scored: share of their positions with an output of the head.
        prompt: tokens that several of them begin with and that an engine with ``enable_tree_training`` computes once; 0
            if they share nothing, or nothing that is known.
        samples: sequences with the same prompt, on average.
    """

    number: int | None = None
    length: int = 4096
    scored: float = 1.0
    prompt: int = 0
    samples: float = 1

    @property
    def shares_prompts(self) -> bool:
        """Whether several of them begin with the same known prompt."""
        return self.prompt > 0 and self.samples > 1


@dataclass(frozen=True)
class EngineRequest:
    """One engine to plan.

    Attributes:
        role: section of the configuration, such as ``actor``.
        layout: its layout, as written.
        model: its model.
        config: its section, as the engine gets it.
        sequences: of one optimizer step, or of one pass of a model that is not trained.
        explicit: dotted names of the options that the user wrote.
        option: the option that holds the layout, for messages.
        device: ``cuda`` or ``cpu``.
        entropy: whether the loss asks the head for entropies, as the losses of policies do.
        ranks_per_node: devices of a machine; ``None`` if unknown.
    """

    role: str
    layout: str
    model: NamedModel
    config: ArchonEngineConfig
    sequences: Sequences = field(default_factory=Sequences)
    explicit: frozenset[str] = frozenset()
    option: str = "--layout"
    device: str = "cuda"
    entropy: bool = False
    ranks_per_node: int | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of an engine.

    Attributes:
        layout: the parsed layout.
        engine: its training engine.
        model: its model.
        anatomy: of the model.
        schedule: the pipeline schedule; ``None`` without a pipeline.
        pipeline: splits the model into stages; ``None`` without a pipeline.
    """

    layout: Layout
    engine: TrainEngineSpec
    model: ModelSpec
    anatomy: ModelAnatomy
    schedule: ScheduleSpec | None = None
    pipeline: PipelineSpec | None = None


def choose_pipeline(
    config: ArchonEngineConfig, engine: TrainEngineSpec, layout: Layout, registry: Registry
) -> tuple[ScheduleSpec | None, PipelineSpec | None]:
    """Schedule and pipeline of a layout; ``None`` for both if it has no stages.

    Raises:
        UnknownNameError: one is not installed.
        ConfigError: the engine has no option for a schedule.
    """
    if layout.dims["p"] == 1:
        return None, None
    return select_schedule(config, engine, registry), registry.get(PipelineSpec, PIPELINE)


def plan_stages(
    anatomy: ModelAnatomy,
    pipeline: PipelineSpec,
    schedule: ScheduleSpec,
    *,
    n_ranks: int,
    options: ArchonOptions,
    role: str = "actor",
) -> StagePlan:
    """The stages of a model on ``n_ranks`` pipeline ranks, by the costs that the engine estimates: the numbers of
    elements in the matrices of a unit, a row for the embedding, and 4/3 of its products for the head.

    Raises:
        PluginError: the split cannot be imported.
        LayoutError, ConfigError: the model cannot be split like that.
    """
    head = sum(map(_products, anatomy.last)) + (anatomy.vocab_size * anatomy.hidden_size if anatomy.tied else 0)
    costs = [sum(map(_products, kind.weights)) for kind in anatomy.kinds]
    return _split(
        pipeline,
        tuple(costs[kind] for kind in anatomy.kind_of),
        sum(weight.shape[-1] for weight in anatomy.embed),
        HEAD_RECOMPUTES * head,
        schedule,
        n_ranks,
        (options.pp_layers_per_stage, options.pp_first_stage_less_layers, options.pp_last_stage_less_layers),
        role,
    )


@functools.lru_cache(maxsize=512)
def _split(
    pipeline: PipelineSpec,
    layer_costs: tuple[int, ...],
    embed_cost: float,
    head_cost: float,
    schedule: ScheduleSpec,
    n_ranks: int,
    lengths: tuple[int | None, int | None, int | None],
    role: str,
) -> StagePlan:
    per_stage, first, last = lengths
    split = pipeline.load_part("split")
    plan: StagePlan = split(
        layer_costs,
        embed_cost=embed_cost,
        head_cost=head_cost,
        schedule=schedule,
        n_ranks=n_ranks,
        options=SimpleNamespace(
            pp_layers_per_stage=per_stage, pp_first_stage_less_layers=first, pp_last_stage_less_layers=last
        ),
        role=role,
    )
    return plan


def _products(weight: WeightShape) -> int:
    return weight.size if len(weight.shape) >= 2 else 0


@functools.lru_cache(maxsize=512)
def schedule_actions(schedule: ScheduleSpec, plan: StagePlan, n_ranks: int, n_micro_batches: int) -> RankActions:
    """The lists of a training step: one per pipeline rank."""
    actions: RankActions = schedule.load()(n_ranks, len(plan), n_micro_batches)
    return actions


@functools.lru_cache(maxsize=64)
def forward_actions(plan: StagePlan, n_ranks: int, n_micro_batches: int) -> RankActions:
    """The lists of forward passes alone, which are the same for every schedule: each rank runs first what can be
    ready first, and on a tie the deeper stage."""
    order = sorted(
        (Action(stage, ActionKind.FORWARD, number) for stage in range(len(plan)) for number in range(n_micro_batches)),
        key=lambda action: (action.stage + action.micro_batch, -action.stage),
    )
    return tuple(tuple(a for a in order if plan.rank_of[a.stage] == rank) for rank in range(n_ranks))
