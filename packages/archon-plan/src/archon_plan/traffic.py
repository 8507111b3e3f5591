"""Bytes on the wire: what one rank of each pipeline rank sends in one optimizer step, by axis and collective.

Everything is derived from shapes, as the engine does it, and equals what a counting process group sees of real steps
(``tests/plan/test_traffic.py``). Two kinds of traffic are left out, because they are small and depend on more than
shapes: Python values that ranks exchange, such as the shares of a batch and the totals of a loss; and what starting an
engine exchanges.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import pairwise

from archon_core.contracts.pipeline import ActionKind
from archon_core.models.anatomy import WeightShape
from archon_plan.expert_traffic import add_experts, add_reports
from archon_plan.ledger import Group, Ledger
from archon_plan.muon_traffic import add_muon
from archon_plan.results import Axis, Transfer
from archon_plan.setting import Setting
from archon_plan.shards import shards_of
from archon_plan.token_traffic import Passes, TokenSizes, add_embedding, add_head, add_layer
from archon_plan.units import stage_weights, tied_copies
from archon_plan.weight_traffic import add_weights

HEADER_BYTES = 6 * 8
"""Of what the ranks of a pipeline compare before a step (``archon_pipeline.channels.Header``)."""


def transfers(setting: Setting) -> tuple[Transfer, ...]:
    """What one rank of each pipeline rank sends in one optimizer step; without ``trains``, in forward passes alone.

    Micro-batches count as equally long, and routers as balanced (``expert_traffic.share_of_place``). Where the ranks of
    a group send different amounts, the largest is given.
    """
    halves = _halves(setting)
    return tuple(
        transfer
        for pipeline_rank in range(setting.dims.pp)
        for transfer in _of_pipeline_rank(setting, pipeline_rank, halves).transfers(pipeline_rank)
    )


def _of_pipeline_rank(setting: Setting, pipeline_rank: int, halves: Mapping[int, int]) -> Ledger:
    ledger = Ledger()
    add_weights(ledger, setting, pipeline_rank)
    stages = setting.held_by(pipeline_rank)
    n = setting.tokens.n_micro_batches
    backward = n if setting.trains else 0
    for number, stage in zip(setting.stage_plan.held_by(pipeline_rank), stages, strict=True):
        if stage.has_embed:
            add_embedding(ledger, setting, Passes(n, backward))
        for (kind, is_repeated), count in setting.layers_of(stage).items():
            layer = setting.anatomy.kinds[kind]
            again = backward + halves[number] if is_repeated else 0
            passes = Passes(count * n, count * backward, count * again)
            add_layer(ledger, setting, layer, passes)
            if layer.experts is not None:
                add_experts(ledger, setting, layer.experts, passes)
        if stage.has_head:
            add_head(ledger, setting, Passes(n, backward))
    if setting.dims.pp > 1:
        _add_pipeline(ledger, setting, pipeline_rank)
    _add_once(ledger, setting, pipeline_rank)
    return ledger


def transfers_once(setting: Setting, pipeline_rank: int) -> tuple[Transfer, ...]:
    """Those of ``transfers`` after the passes of a step, but for sums of gradients that FSDP2 makes: of one pipeline
    rank."""
    ledger = Ledger()
    _add_once(ledger, setting, pipeline_rank)
    return ledger.transfers(pipeline_rank)


def _add_once(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    if setting.trains:
        _add_gradients(ledger, setting, pipeline_rank)
        stages = setting.held_by(pipeline_rank)
        if setting.optimizer == "muon":
            add_muon(ledger, setting, pipeline_rank)
        layers = (setting.anatomy.layers[number].experts for stage in stages for number in stage.layers)
        add_reports(ledger, setting, [experts for experts in layers if experts is not None])


def _halves(setting: Setting) -> Counter[int]:
    """Stage -> number of split backward passes, if that matters: both halves recompute a layer, and repeat its
    collectives.

    The ends of a pipeline do all work of a backward pass in one of its halves (``archon_pipeline.stage_passes``).
    """
    splits = setting.schedule is not None and setting.schedule.splits_backward
    if not (setting.trains and splits and (setting.checkpointing == "full" or setting.every is not None)):
        return Counter()
    middle, half = range(1, len(setting.stage_plan) - 1), ActionKind.BACKWARD_INPUT
    return Counter(
        action.stage for own in setting.actions for action in own if action.kind is half and action.stage in middle
    )


def _add_pipeline(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    """Add what stages send to each other. Every micro-batch passes every stage once, whatever the schedule."""
    plan, sizes, n = setting.stage_plan, TokenSizes(setting), setting.tokens.n_micro_batches
    ranks = Group.of("pp", setting.dims)
    states = sizes.local * setting.anatomy.hidden_size * sizes.compute
    ledger.add(ranks, "all_gather", "header", HEADER_BYTES * ranks.size, 1)
    for here, there in pairwise(plan.rank_of):
        if here != there and pipeline_rank == here:
            ledger.add(ranks, "send", "hidden states", states, n, overlaps=True)
        if here != there and pipeline_rank == there and setting.trains:
            ledger.add(ranks, "send", "gradients of hidden states", states, n, overlaps=True)
    if not setting.trains:
        outputs = 2 if setting.entropy and not setting.anatomy.critic else 1
        values = n * sizes.whole * sizes.exact if pipeline_rank == plan.last_rank else 0
        ledger.add(ranks, "broadcast", "outputs", values, outputs)


def _add_gradients(ledger: Ledger, setting: Setting, pipeline_rank: int) -> None:
    """Add the sums of gradients that FSDP2 leaves out, and the gradient norm."""
    dims, anatomy, plan = setting.dims, setting.anatomy, setting.stage_plan
    master = setting.types.master
    exact = max(4, master)
    sets = list(_weights(setting, pipeline_rank))
    elements = sum(count * shards_of(_replicated(weights), dims).elements for weights, count in sets)
    ledger.add(Group.of("tp", dims), "all_reduce", "replicated gradients", elements * exact, 1 if elements else 0)
    ends = {plan.rank_of[0], plan.last_rank}
    if anatomy.tied and len(ends) == 2 and pipeline_rank in ends:
        shard = shards_of(tied_copies(anatomy), dims).elements
        ledger.add(Group.of("pp", dims), "send", "gradients of tied weights", shard * master, 1)
    # One sum of squares per set of axes over which gradients are sharded, and axis.
    sums = {axes for weights, _ in sets for axes in _sharded_over(weights, dims.tp > 1)}
    for axes in sums:
        for axis in axes:
            group = Group(axis, dims.ep) if axis == "ep" else Group.of(axis, dims)
            ledger.add(group, "all_reduce", "gradient norm", exact, 1)
    ledger.add(Group.of("pp", dims), "all_reduce", "gradient norm", 8, 1)


def _weights(setting: Setting, pipeline_rank: int) -> Iterator[tuple[tuple[WeightShape, ...], int]]:
    """The weights on a pipeline rank: those of equal layers, and how many there are."""
    for stage in setting.held_by(pipeline_rank):
        before, after = stage_weights(setting.anatomy, stage)
        yield before, 1
        yield after, 1
        for kind, count in Counter(setting.anatomy.kind_of[number] for number in stage.layers).items():
            yield setting.anatomy.kinds[kind].weights, count


@lru_cache(maxsize=1024)
def _replicated(weights: tuple[WeightShape, ...]) -> tuple[WeightShape, ...]:
    """Those of which every tensor rank has a copy."""
    return tuple(weight for weight in weights if weight.role != "expert" and weight.tensor_dim is None)


@lru_cache(maxsize=1024)
def _sharded_over(weights: tuple[WeightShape, ...], has_tensor_ranks: bool) -> frozenset[tuple[Axis, ...]]:
    """The sets of axes over which some of the weights are sharded."""
    return frozenset(
        ("edp", "ep", "etp")
        if weight.role == "expert"
        else ("fsdp", "tp")
        if has_tensor_ranks and weight.tensor_dim is not None
        else ("fsdp",)
        for weight in weights
    )
