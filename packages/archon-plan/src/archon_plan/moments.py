"""The moments of a step at which a rank's memory can peak, with the weights, gradients and buffers that live then.

FSDP2 allocates in this order (torch 2.11 to 2.13, ``torch/distributed/fsdp/_fully_shard``):

- A group's all-gather writes into one buffer, which is copied into the unsharded weights. In a backward pass the next
  group's buffer is filled while a group runs; in a forward pass a group's own buffer lives until the next group's.
- At the end of a group's backward pass its unsharded weights are freed, and its gradients are copied into the input of
  the reduce-scatter, which lives until the next group's is made.
- The root's group, and groups before the blocks, end when the whole backward pass does.
- A pipeline keeps unsharded weights by default. Unsharded gradients accumulate in the type of reductions, until the
  step reduces all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from archon_plan.moment import Moment
from archon_plan.setting import Setting
from archon_plan.shards import NOTHING, Shards
from archon_plan.units import Block, StageUnits, units_of


def moments(setting: Setting, pipeline_rank: int) -> tuple[Moment, ...]:
    """The moments at which memory can peak, on the rank with the largest shards of a pipeline rank.

    States that live throughout, parameters and those of the optimizer, are left out. Without training there is one
    moment; with training the last one is the optimizer's step.
    """
    stages = units_of(setting, pipeline_rank)
    if not setting.trains:
        return (_forward(setting, stages),)
    if not setting.is_sharded:
        found = _without_fsdp(setting, stages[0])
    elif setting.dims.pp == 1:
        found = _Sequential(setting, stages[0]).moments()
    else:
        found = _Pipelined(setting, stages).moments()
    return (*found, _optimizer_step(setting, stages, pipeline_rank))


def _forward(setting: Setting, stages: tuple[StageUnits, ...]) -> Moment:
    kept = 0 if setting.reshards else sum(stage.total.gathered for stage in stages)
    running = max(_running_forward(setting, stage) for stage in stages)
    size = setting.types.compute if setting.is_sharded else 0
    return Moment("forward", "any", weights=size * (kept + running))


def _running_forward(setting: Setting, stage: StageUnits) -> int:
    """Elements of the weights and buffers of the groups that run together, at most. Weights that stay after the forward
    pass are left out."""
    dims = setting.dims

    def weights(group: Shards) -> int:
        return group.gathered if setting.reshards else 0

    def running(group: Shards, *, ranks: int) -> int:
        return weights(group) + (group.gathered + group.rearranged if ranks > 1 else 0)

    data_ranks = dims.dp_shard * dims.cp
    sizes = [running(group, ranks=data_ranks) for group in (stage.early, stage.last)]
    for block in stage.blocks:
        sizes.append(running(block.dense, ranks=data_ranks))
        sizes.append(weights(block.dense) + running(block.experts, ranks=dims.edp))
    return max(sizes) + weights(stage.root)


def _without_fsdp(setting: Setting, stage: StageUnits) -> Iterator[Moment]:
    """Autograd adds to the gradients of the parameters themselves."""
    size = setting.types.master
    several = setting.tokens.n_micro_batches > 1
    first = stage.total if several else stage.last + stage.root
    yield Moment("backward", "any", gradients=first.elements * size)


class _Sequential:
    """One micro-batch after the other through a whole model."""

    def __init__(self, setting: Setting, stage: StageUnits) -> None:
        dims, types = setting.dims, setting.types
        self._stage = stage
        self._frees = setting.reshards
        self._compute, self._reduce = types.compute, types.reduce
        # A group of one rank is not gathered: its weights are cast.
        self._gather = self._compute if dims.dp_shard * dims.cp > 1 else 0
        self._gather_experts = self._compute if dims.edp > 1 else 0
        self._stored = 0 if setting.offloads else types.master
        self._several = setting.tokens.n_micro_batches > 1

    def moments(self) -> Iterator[Moment]:
        stage = self._stage
        # Equal blocks need the same; of others, the largest may run at any time.
        block = max(stage.blocks, key=lambda block: (block.dense + block.experts).gathered)
        n_blocks = sum(block.count for block in stage.blocks)
        one, last = block.dense + block.experts, stage.last
        yield from self._in_head(block.dense)
        # The last block runs when all activations live. After it, the reduce-scatter of a block is in flight, not that
        # of the head. While the first one runs, the embedding is gathered, which may be larger than a block.
        coming = block.dense if n_blocks > 1 else stage.early
        yield from self._in_block(block, before=last, coming=coming, done=last, left=1.0, share=1 / n_blocks)
        if n_blocks > 2:
            done, left = last + one, 1 - 1 / n_blocks
            coming = max((block.dense for block in stage.blocks), key=lambda dense: dense.gathered)
            yield from self._in_block(
                block, before=block.dense, coming=coming, done=done, left=left, share=1 / n_blocks
            )
        if n_blocks > 1:
            done, left = last + one.times(n_blocks - 1), 1 / n_blocks
            yield from self._in_block(
                block, before=block.dense, coming=stage.early, done=done, left=left, share=1 / n_blocks
            )
        yield self._at_end()

    def _gradients(self, done: Shards) -> int:
        """Sharded gradients, while the backward pass is through with some groups. With one micro-batch, gradients
        appear as activations disappear."""
        return (self._stage.total if self._several else done).stored * self._stored

    def _in_head(self, coming: Shards) -> Iterator[Moment]:
        """Backward begins here. The last group, which a tied head is not part of, gathers the last block."""
        stage, last, is_tied = self._stage, self._stage.last, self._stage.root.tensors > 0
        own, buffer = last.gathered * self._compute, coming.gathered * self._gather
        if self._frees:
            before = (stage.root + last).gathered * self._compute + (0 if is_tied else buffer)
            after = stage.root.gathered * self._compute + buffer
        else:
            before = stage.total.gathered * self._compute
            after = before - own
        sharded = self._gradients(NOTHING)
        head = (stage.root if is_tied else last).whole * self._compute
        yield Moment("backward of the head", "head", sharded, 0, before, running=head)
        reduced = (last + stage.root).whole * self._compute + last.gathered * self._reduce
        yield Moment("reduction of the head", "kept", sharded, 0, after, reduced)

    def _in_block(
        self, block: Block, *, before: Shards, coming: Shards, done: Shards, left: float, share: float
    ) -> Iterator[Moment]:
        """The backward pass of a block: its beginning, without gradients yet, and the ends of its groups, before and
        after their weights are freed.

        Args:
            before: the group whose reduce-scatter is in flight.
            coming: the group that is gathered.
            done: all groups behind this block.
            left: share of the blocks that have yet to run, this one included.
            share: of one block.
        """
        dense, experts = block.dense, block.experts
        buffer = coming.gathered * self._gather if self._frees else 0
        gradients, shared = self._gradients(done), self._shared(before)
        weights = self._whole(dense + experts, done)
        if experts.tensors and self._frees:
            # The next block is gathered later, and the experts have no gradients yet. What the block has recomputed by
            # now takes less than these.
            arriving = weights + (experts.gathered + experts.rearranged) * self._gather_experts
            yield Moment("gathering of experts", "kept", gradients, 0, arriving, shared, kept=left)
        yield Moment("backward of a block", "block", gradients, 0, weights + buffer, shared, kept=left)

        def moment(name: str, whole: Shards, group: Shards, reduced: Shards) -> Moment:
            freed = done + dense + experts - whole
            weights = self._whole(whole, freed) + buffer
            reductions = self._shared(reduced) + group.whole * self._compute
            return Moment(name, "kept", gradients, 0, weights, reductions, kept=left - share)

        if experts.tensors:
            yield moment("end of experts", dense + experts, experts, before)
            yield moment("reduction of experts", dense, experts, experts)
            before = experts
        yield moment("end of a block", dense, dense, before)
        yield moment("reduction of a block", NOTHING, dense, dense)

    def _whole(self, running: Shards, freed: Shards) -> int:
        """Unsharded weights: those of the running groups, or, if they stay after the forward pass, all but the freed
        ones."""
        stage = self._stage
        groups = stage.root + running if self._frees else stage.total - freed
        return groups.gathered * self._compute

    def _shared(self, reduced: Shards) -> int:
        """Gradients of tied weights, which live until the pass ends, and the input of a reduce-scatter."""
        return self._stage.root.whole * self._compute + reduced.gathered * self._reduce

    def _at_end(self) -> Moment:
        """The embedding's gradient comes last. That of a tied head waits for it, to be added."""
        stage = self._stage
        ends, first = stage.root + stage.early, stage.blocks[0].dense
        # Gradients of the embedding are the only ones that are not sharded yet.
        sharded = self._gradients(stage.total - ends)
        weights = ends.gathered * self._compute
        gradients = (ends + stage.root).whole * self._compute + first.gathered * self._reduce
        running = Moment("backward of the embedding", "kept", sharded, 0, weights, gradients, kept=0.0)
        reductions = ends.whole * self._compute + ends.gathered * self._reduce
        reduced = Moment("reduction of the embedding", "kept", sharded, 0, 0, reductions, kept=0.0)
        return max(running, reduced, key=lambda moment: moment.total)


class _Pipelined:
    """Many micro-batches through the stages of a pipeline rank."""

    def __init__(self, setting: Setting, stages: tuple[StageUnits, ...]) -> None:
        self._setting, self._stages = setting, stages
        self._compute, self._reduce = setting.types.compute, setting.types.reduce
        self._master = 0 if setting.offloads else setting.types.master
        self._total = sum((stage.total for stage in stages), NOTHING)
        if setting.reshards:
            self._weights = _forward(setting, stages).weights
        else:
            self._weights = self._total.gathered * self._compute

    def moments(self) -> Iterator[Moment]:
        each = self._setting.reduces_each
        largest = max((stage.total for stage in self._stages), key=lambda total: total.whole)
        accumulated = (largest if each else self._total).whole * self._reduce
        sharded = self._total.stored * self._master if each else 0
        fresh = 0
        if not each and self._reduce != self._compute:
            # The newest gradients are added to the accumulated ones group by group.
            fresh = max(group.whole for stage in self._stages for group in _groups(stage)) * self._compute
        yield Moment("backward", "any", sharded, accumulated, self._weights, running=fresh)
        yield max(self._reductions(), key=lambda moment: moment.total)

    def _reductions(self) -> Iterator[Moment]:
        """Groups are reduced in the order of the module, and lose weights and gradients."""
        setting = self._setting
        each = setting.reduces_each
        frees = not setting.reshards and not each
        weights = 0 if setting.reshards else self._weights
        accumulated = self._total.whole
        sharded = self._total.stored if each else 0
        for stage in self._stages:
            if each:
                accumulated = stage.total.whole
            for group in _groups(stage):
                weights -= group.gathered * self._compute if frees else 0
                accumulated -= group.whole
                yield Moment(
                    "reduction of a stage" if each else "reduction of all stages",
                    "kept",
                    sharded * self._master,
                    accumulated * self._reduce,
                    weights,
                    (group.whole + group.gathered) * self._reduce,
                    kept=1.0 if each else 0.0,
                )
                sharded += 0 if each else group.stored


def _groups(stage: StageUnits) -> Iterator[Shards]:
    """Every group of a stage, in the order of its modules."""
    blocks = [group for block in stage.blocks for group in (block.dense, block.experts) * block.count]
    return (group for group in (stage.root, stage.early, *blocks, stage.last) if group.tensors)


def _optimizer_step(setting: Setting, stages: tuple[StageUnits, ...], pipeline_rank: int) -> Moment:
    on_device = 0 if setting.offloads else setting.types.master
    gradients = sum(stage.total.stored for stage in stages) * on_device
    buffers = _muon_buffers(setting, stages, pipeline_rank) * on_device if setting.optimizer == "muon" else 0
    return Moment("optimizer step", "kept", gradients=gradients, buffers=buffers, kept=0.0)


def _muon_buffers(setting: Setting, stages: tuple[StageUnits, ...], pipeline_rank: int) -> float:
    """Elements that Muon's exchange allocates (``archon_engine.optimizer.muon.orthogonalise_all``) at its peak: this
    rank's part of all updates, sent and received, and the whole matrices that this rank orthogonalises, before and
    after. Ranks share the matrices about evenly, as whole ones. Other optimizers update in place."""
    anatomy = setting.anatomy
    own = sum(block.total.matrices for stage in stages for block in stage.blocks)
    if not setting.is_sharded:
        return 2 * own
    layers = [
        anatomy.kinds[anatomy.kind_of[layer]] for stage in setting.held_by(pipeline_rank) for layer in stage.layers
    ]
    matrices = [weight.size for layer in layers for weight in layer.weights if 2 <= len(weight.shape) <= 3]
    whole = max(max(matrices, default=0), sum(matrices) / setting.dims.stage_size)
    return 3 * own + 2 * whole
