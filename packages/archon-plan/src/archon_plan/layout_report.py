"""Prints the meshes of an engine, and which rank holds what."""

from __future__ import annotations

from archon_core.cli.console import print_table, print_text
from archon_plan.engine_plan import EnginePlan
from archon_plan.extents import expert_extents
from archon_plan.numbers import count, span
from archon_plan.placement import Placement, find_placement
from archon_plan.setting import Setting

MOST_ROWS = 8
"""Most rank classes of a table."""


def print_layout(plan: EnginePlan) -> None:
    """Print the meshes, the stages and the parts of the weights."""
    setting = plan.setting
    placement = find_placement(setting)
    print_text(describe_meshes(setting))
    print_text("")
    if setting.dims.pp > 1:
        assert setting.schedule is not None, "an engine with pipeline ranks has a schedule"
        print_text(f"stages, for {setting.schedule.name}:")
        print_table(("pipeline rank", "ranks", "stage: layers", "also holds", "parameters"), _stage_rows(placement))
        print_text("")
    print_table(("split", "over", "each rank has"), split_rows(setting))
    if len(placement.classes) > 1:
        print_text("")
        _print_classes(setting, placement)


def describe_meshes(setting: Setting) -> str:
    """The two views of an engine's ranks: ``16 ranks = 4 pipeline x 1 data x 2 context x 2 tensor``."""
    dims = setting.dims
    axes = [(dims.pp, "pipeline"), (dims.dp_replicate, "replicas"), (dims.dp_shard, "data")]
    dense = [*axes, (dims.cp, "context"), (dims.tp, "tensor")]
    lines = [f"{_ranks(dims.world_size)} = {_product(dense)}"]
    if setting.anatomy.has_experts:
        experts = [*axes[:2], (dims.edp, "expert data"), (dims.ep, "expert"), (dims.etp, "expert tensor")]
        lines.append(f"{' ' * len(_ranks(dims.world_size))} = {_product(experts)}, for experts")
    return "\n".join(lines)


def _ranks(number: int) -> str:
    return f"{number:,} rank{'s' if number > 1 else ''}"


def _product(sizes: list[tuple[int, str]]) -> str:
    return " x ".join(f"{size} {name}" for size, name in sizes if size > 1) or "1"


def _stage_rows(placement: Placement) -> list[tuple[str, ...]]:
    rows = []
    for rank in placement.pipeline:
        stages = "; ".join(f"{number}: {span(layers)}" for number, layers in rank.stages)
        ends = [name for name, has in (("embedding", rank.has_embed), ("norm and head", rank.has_head)) if has]
        rows.append((str(rank.number), span(rank.ranks), stages, ", ".join(ends), count(rank.parameters)))
    return rows


def split_rows(setting: Setting) -> list[tuple[str, str, str]]:
    """What is split, over how many ranks, and the part of each rank."""
    dims, anatomy, tokens = setting.dims, setting.anatomy, setting.tokens
    heads = anatomy.attention.heads
    n_experts, inner = expert_extents(anatomy)
    dense = dims.dp_shard * dims.cp
    rows = [
        (
            f"{tokens.per_micro_batch:,} tokens of a micro-batch",
            _over(("tensor", dims.tp), ("context", dims.cp)),
            f"{setting.local_tokens:,}",
        ),
        (
            f"{heads.query} query and {heads.key_value} key heads",
            _over(("tensor", dims.tp), ("context", dims.cp)),
            _heads_each(setting),
        ),
        (f"{anatomy.vocab_size:,} rows of the vocabulary", _over(("tensor", dims.tp)), f"{_share(setting):,}"),
    ]
    widths = {layer.intermediate_size for layer in anatomy.kinds if layer.intermediate_size}
    for width in sorted(widths):
        rows.append((f"width {width:,} of the MLP", _over(("tensor", dims.tp)), f"{width // dims.tp:,}"))
    if n_experts:
        rows.append((f"{n_experts} experts", _over(("expert", dims.ep)), f"{n_experts // dims.ep}"))
        rows.append((f"width {inner:,} of an expert", _over(("expert tensor", dims.etp)), f"{inner // dims.etp:,}"))
    rows.append(("these parts of dense weights", _over(("data", dims.dp_shard), ("context", dims.cp)), _part(dense)))
    if n_experts:
        rows.append(("these parts of experts", _over(("expert data", dims.edp)), _part(dims.edp)))
    return rows


def _part(number: int) -> str:
    return f"1/{number}" if number > 1 else "all"


def _over(*axes: tuple[str, int]) -> str:
    return " x ".join(f"{size} {name}" for name, size in axes if size > 1) or "not split"


def _share(setting: Setting) -> int:
    return -(-setting.anatomy.vocab_size // setting.dims.tp)


def _heads_each(setting: Setting) -> str:
    heads, dims = setting.anatomy.attention.heads, setting.dims
    parts = dims.tp * dims.cp
    queries = heads.query // parts
    # A rank needs every key head that its query heads read, whole (``archon_engine.nn.key_heads``).
    keys = max(1, -(-queries * heads.key_value // heads.query))
    return f"{queries} query and {keys} key"


def _print_classes(setting: Setting, placement: Placement) -> None:
    of = f" of each pipeline rank, counted from its first of {setting.dims.stage_size}" if setting.dims.pp > 1 else ""
    print_text(f"ranks{of}, and their parts before sharding over data ranks:")
    has_experts = setting.anatomy.has_experts
    columns = ["ranks", "query heads", "vocabulary"] + (["experts", "of their width"] if has_experts else [])
    rows = []
    for one in placement.classes[:MOST_ROWS]:
        row = [span(one.ranks), span(one.query_heads), span(one.vocabulary)]
        rows.append((*row, *((span(one.experts), span(one.expert_columns)) if has_experts else ())))
    print_table(columns, rows)
    if len(placement.classes) > MOST_ROWS:
        print_text(f"... and {len(placement.classes) - MOST_ROWS} more, in the same way")
