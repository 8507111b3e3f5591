"""The Archon engine in a dry run: problems and decisions that need no device and no process. Imports no torch."""

from __future__ import annotations

from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import EngineOutline, EnginePreview
from archon_core.errors import ConfigError, LayoutError
from archon_core.layout.model_sizes import ShardedExtents, check_sizes
from archon_engine.models.capabilities import tree_refusal
from archon_engine.options.combinations import changes, refusals, refuse_when_strict
from archon_engine.options.context import OptionContext
from archon_engine.options.context_style import ContextSizes, padding_decision, split_context, style_decisions
from archon_engine.options.pipelines import count_stages, micro_batch_decisions
from archon_engine.options.routing_replay import replay_without_experts, replay_without_record
from archon_engine.options.shared_prefixes import refuse_rotations


def preview(outline: EngineOutline) -> EnginePreview:
    """``preview`` of the engine's ``TrainEngineSpec``. Raises PluginError: a pipeline's split cannot be imported."""
    config, role, schedule = outline.config, outline.role, outline.schedule
    dims = None if outline.layout is None else outline.layout.dims
    context = OptionContext.of(
        config,
        role,
        outline.explicit,
        pipeline_ranks=None if dims is None else dims["p"],
        schedule=schedule,
        context_ranks=None if dims is None else dims["c"],
    )
    problems = [f"{role}.{option}: {text}" for option, text in refusals(context)]
    problems += [*_routing_replay_problems(outline), *_tree_problems(outline), *_head_problems(outline)]
    _, decisions = changes(context, role=role)
    try:
        decisions += _context_decisions(outline)
        decisions += _pipeline_decisions(outline)
    except (ConfigError, LayoutError) as error:
        problems.append(str(error))
    if refusal := refuse_when_strict(config, decisions, role=role):
        problems.append(refusal)
    return EnginePreview(tuple(problems), tuple(decisions))


def _routing_replay_problems(outline: EngineOutline) -> list[str]:
    config, role, model = outline.config, outline.role, outline.model
    problems = [
        replay_without_record(config, outline.rollout, role=role),
        None if model is None else replay_without_experts(config, model, role=role),
    ]
    return [problem for problem in problems if problem is not None]


def _tree_problems(outline: EngineOutline) -> list[str]:
    if not outline.config.enable_tree_training:
        return []
    of_model = None if outline.model is None else tree_refusal(outline.model, role=outline.role)
    refusal = of_model or refuse_rotations(outline.entries, role=outline.role)
    return [] if refusal is None else [refusal]


def _head_problems(outline: EngineOutline) -> list[str]:
    """Problems with the division of attention heads over tensor ranks. The engine checks the other sizes."""
    n_heads, layout = _n_heads(outline), outline.layout
    if n_heads is None or layout is None:
        return []
    try:
        check_sizes(ShardedExtents({"attention heads": n_heads}), layout, option=f"{outline.role}.backend")
    except LayoutError as error:
        return [str(error)]
    return []


def _n_heads(outline: EngineOutline) -> int | None:
    n_heads = outline.entries.get("num_attention_heads")
    known = outline.model is not None and isinstance(n_heads, int) and n_heads > 0
    return n_heads if known else None


def _context_decisions(outline: EngineOutline) -> list[Decision]:
    """Decisions about the style of context parallelism and the padding. Raises ConfigError: the style does not fit the
    heads.

    A dry run does not know the machines that ranks will run on, so a run on several may choose smaller groups. Where it
    does not know whether layers are recurrent, the padding is left out if it depends on them.
    """
    layout, model = outline.layout, outline.model
    if layout is None:
        return []
    # Heads matter to context ranks alone.
    n_heads = _n_heads(outline) if layout.dims["c"] > 1 else 0
    if n_heads is None or n_heads % layout.dims["t"]:
        return []
    style, option = outline.config.archon.cp_style, f"{outline.role}.archon.cp_style"
    sizes = ContextSizes(layout.dims["c"], layout.dims["t"], n_heads)
    split = split_context(style, sizes, option=option)
    asked, option_of_padding = outline.config.batch_align_to, f"{outline.role}.batch_align_to"
    # A model with recurrent layers cannot support tree.
    orders = (False,) if model is not None and "tree" in model.capabilities else (False, True)
    paddings = {
        padding_decision(asked, sizes, split, in_order=in_order, option=option_of_padding) for in_order in orders
    }
    certain = paddings - {None} if len(paddings) == 1 else set()
    return [*style_decisions(style, sizes, split, option=option), *certain]


def _pipeline_decisions(outline: EngineOutline) -> list[Decision]:
    """Decisions of the schedule about micro-batches. Raises ConfigError, LayoutError: the model has too few layers."""
    layout, schedule, pipeline = outline.layout, outline.schedule, outline.pipeline
    n_layers = outline.entries.get("num_hidden_layers")
    if layout is None or schedule is None or pipeline is None or not isinstance(n_layers, int):
        return []
    n_ranks = layout.dims["p"]
    options, role = outline.config.archon, outline.role
    n_stages = count_stages(pipeline, n_layers, schedule=schedule, n_ranks=n_ranks, options=options, role=role)
    return micro_batch_decisions(
        outline.config.mb_spec, schedule, n_ranks=n_ranks, n_stages=n_stages, role=outline.role
    )
