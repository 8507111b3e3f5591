"""The evidence of `archon verify` is worth something: planted mistakes are caught, and traced to their place.

They are of the kinds that distributed training is known for, one small patch each. A patch changes archon_core or
archon_pipeline in the ranks of one world.
"""

from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

from archon_core.contracts import packed
from archon_engine import compat, mesh
from archon_engine.assembly import tied_copies
from archon_engine.checkpoint import engine_checkpoints as checkpoints
from archon_engine.models import initialize
from archon_engine.nn import key_gathering, tensor_parallel, ulysses
from archon_engine.step import grad_norm, step
from archon_engine.step import sequential_runner as runner
from archon_pipeline import stage_passes
from archon_testing.cases import variant_case
from archon_testing.oracle import Oracle, Outcome
from archon_testing.requested import read_layout
from archon_testing.requested_model import read_model


def leave_norms_unsummed_over_tensor_ranks():
    """Their gradient is taken for one that every rank has whole, as it would be without sequence sharding."""
    sum_gradients = step.sum_replicated_gradients
    step.sum_replicated_gradients = lambda parameters, mesh: sum_gradients((p for p in parameters if p.ndim > 1), mesh)


def take_the_norm_over_data_ranks_only():
    sharded_axes = grad_norm._sharded_axes

    def of_data_ranks(gradient):
        mesh, axes = sharded_axes(gradient)
        return mesh, tuple(axis for axis in axes if mesh.mesh_dim_names[axis] != "tp")

    grad_norm._sharded_axes = of_data_ranks


def count_every_replica_in_the_norm():
    sharded_axes = grad_norm._sharded_axes

    def and_replicas(gradient):
        mesh, axes = sharded_axes(gradient)
        return mesh, tuple(range(mesh.ndim)) if mesh is not None else axes

    grad_norm._sharded_axes = and_replicas


def divide_losses_by_each_ranks_own_weight():
    """And average over ranks, as distributed data parallelism does."""
    agree = step.agree

    def own(share, ranks):
        whole = agree(share, ranks)
        own_weights = {unit: weight * ranks.size for unit, weight in share.weights.items()}
        return replace(whole, weights=own_weights or whole.weights)

    step.agree = own


def count_positions_from_each_ranks_first_token():
    """As if the cut tokens were sequences of their own."""
    cut = packed.PackedSequences.cut

    def unshifted(self, context):
        here = cut(self, context)
        return replace(here, positions=self.positions[: here.positions.shape[0]])

    packed.PackedSequences.cut = unshifted


def leave_copies_of_key_heads_unsummed():
    """The gradient of the first copy is taken for that of the head."""

    def replicate_heads(x, copies):
        others = x.detach()
        return torch.stack([x, *[others] * (copies - 1)], dim=2).flatten(1, 2)

    ulysses.replicate_heads = replicate_heads


def leave_gathered_keys_in_the_order_of_the_ranks():
    def gather_keys(self, k, v):
        return compat.all_gather_with_grad(k, 0, self.across.group), compat.all_gather_with_grad(
            v, 0, self.across.group
        )

    key_gathering.KeyGathering.gather_keys = gather_keys


def leave_gradients_of_gathered_keys_unsummed():
    """Leave out the reduce-scatter: a rank keeps the gradients that its own queries give to its keys."""
    gather_keys = key_gathering.KeyGathering.gather_keys

    def own_gradients(self, k, v):
        own = self.local_tokens(torch.arange(self.size * len(k)))
        whole = gather_keys(self, k.detach(), v.detach())
        return tuple(x.index_copy(0, own, part) for x, part in zip(whole, (k, v), strict=True))

    key_gathering.KeyGathering.gather_keys = own_gradients


def drop_the_last_micro_batch():
    train = runner.SequentialRunner.train

    def all_but_the_last(self, micro_batches, objective):
        train(self, micro_batches[: max(1, len(micro_batches) - 1)], objective)

    runner.SequentialRunner.train = all_but_the_last


def leave_the_final_norm_stale_after_resuming():
    load = checkpoints.load_training_state

    def all_but_one(folder, parameters, *others):
        stale = parameters["norm.weight"].detach().clone()
        loaded = load(folder, parameters, *others)
        with torch.no_grad():
            parameters["norm.weight"].copy_(stale)
        return loaded

    checkpoints.load_training_state = all_but_one


def forget_the_step_when_resuming():
    load = checkpoints.load_training_state

    def from_zero(*arguments):
        state, counters, *rest = load(*arguments)
        return state, {**counters, "version": 0}, *rest

    checkpoints.load_training_state = from_zero


def draw_the_value_head_without_a_seed():
    draw = initialize.draw_weight

    def unseeded(name, shape, kind, seed, std):
        if name == "head.weight":
            return torch.empty(shape).normal_(0.0, std)
        return draw(name, shape, kind, seed, std)

    initialize.draw_weight = unseeded


def average_gradients_over_data_ranks():
    """FSDP2's default, which suits losses that each rank divides by its own weight."""
    FSDPModule.set_gradient_divide_factor = lambda self, factor: None
    FSDPModule.set_force_sum_reduction_for_comms = lambda self, enable: None


def leave_replicas_unsummed():
    """Parameters are sharded as without replicas."""
    mesh.Meshes.fsdp = property(lambda self: self.dense[mesh.SHARD])


def sum_what_every_context_rank_has_whole():
    """The gradient of gathered outputs is the same on every rank; summing it once more doubles it."""
    take_part = tensor_parallel._GatherResults.backward

    def summed(ctx, grad):
        own, *rest = take_part(ctx, grad)
        return ctx.size * own, *rest

    tensor_parallel._GatherResults.backward = staticmethod(summed)


def apply_a_micro_batchs_gradient_twice():
    """On the last stage: a backward pass that is repeated, say because its message came twice."""
    backward = stage_passes.StagePasses.backward

    def twice(self, number, gradient):
        live = self._live[number]
        if number == 1 and self.is_last:
            torch.autograd.backward(live.out, gradient, retain_graph=True)
            live.x.grad = None
        return backward(self, number, gradient)

    stage_passes.StagePasses.backward = twice


def leave_tied_copies_unsummed():
    tied_copies.TiedCopies.sum_gradients = lambda self: None


def feed_the_last_stage_the_sequences_of_the_micro_batch_before():
    passes = stage_passes.StagePasses

    def with_other_sequences(run):
        before = {}

        def run_wrongly(self, *arguments):
            place = next(i for i, argument in enumerate(arguments) if hasattr(argument, "packed"))
            own = arguments[place]
            if not self.is_last:
                return run(self, *arguments)
            lent = before.get(id(self), own).packed
            before[id(self)] = own
            if sum(lent.lengths) != sum(own.packed.lengths):  # of another step
                lent = own.packed
            sequences = {name: getattr(lent, name) for name in ("cu_seqlens", "lengths", "max_seqlen")}
            wrong = replace(own, packed=replace(own.packed, **sequences))
            return run(self, *arguments[:place], wrong, *arguments[place + 1 :])

        return run_wrongly

    passes.forward, passes.infer = with_other_sequences(passes.forward), with_other_sequences(passes.infer)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def look_into(oracle, plant, layout, variant="untied", changes=None, **fields):
    """The verdict on one case of Qwen3 with a bug, and its diagnosis."""
    asked = read_layout(layout)
    entries = {**read_model("qwen3").entries_for(asked.n_stages), **(changes or {})}
    case = variant_case(entries, variant, layout=str(asked.layout), schedule=asked.schedule, **fields)
    verdicts = oracle.verify([case], before=plant)
    assert not verdicts[0].passed, "the bug was not caught"
    [diagnosis] = oracle.diagnose(Outcome(verdicts), before=plant)
    return verdicts[0].comparison, diagnosis


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize("layout", ["t2", "d2t2"])
def test_norms_whose_gradient_is_not_summed_over_tensor_ranks(oracle, layout):
    comparison, found = look_into(oracle, leave_norms_unsummed_over_tensor_ranks, layout)
    assert "gradients" in comparison.failed
    assert found.module is None
    assert (found.parameter.name, found.n_wrong, found.n_parameters) == ("norm.weight", 9, 25)
    assert (found.parameter.cause.kind, found.parameter.cause.axes) == ("missing reduction", ("tp",))


@pytest.mark.slow
@pytest.mark.wide
def test_a_clip_norm_that_forgets_the_tensor_ranks(oracle):
    comparison, found = look_into(oracle, take_the_norm_over_data_ranks_only, "d2t2")
    assert {"gradient norm", "weights"} <= set(comparison.failed)
    assert any("ranks report different values of gradient norm" in problem for problem in comparison.problems)
    assert (found.parameter, found.norm.cause.kind, found.norm.cause.axes) == (None, "forgotten axis", ("tp",))


@pytest.mark.slow
@pytest.mark.wide
def test_a_clip_norm_that_counts_every_replica(oracle):
    _, found = look_into(oracle, count_every_replica_in_the_norm, "r2")
    assert (found.parameter, found.norm.cause.kind) == (None, "copies counted")
    assert found.norm.cause.axes == ("dp_replicate",)


@pytest.mark.slow
@pytest.mark.wide
def test_a_loss_that_each_rank_divides_by_its_own_weight(oracle):
    comparison, found = look_into(oracle, divide_losses_by_each_ranks_own_weight, "d2")
    assert {"loss", "gradients", "gradient norm"} <= set(comparison.failed)
    assert comparison.problems == ()
    assert (found.module, found.parameter.name, found.n_wrong) == (None, "head.weight", 25)
    assert found.loss.cause.kind == "unknown"


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize(("layout", "ranks"), [("c2", (1,)), ("c2t2", (2, 3))])
def test_positions_that_are_not_shifted_on_later_context_ranks(oracle, layout, ranks):
    _, found = look_into(oracle, count_positions_from_each_ranks_first_token, layout)
    assert (found.module.name, found.module.ranks, found.module.where) == ("rotary", ranks, {"cp": 1})
    assert "first module in forward order whose output differs: rotary" in found.lines[0]


@pytest.mark.slow
@pytest.mark.wide
def test_copies_of_key_heads_whose_gradients_are_not_summed(oracle):
    one_key_head = {"num_key_value_heads": 1}
    _, found = look_into(oracle, leave_copies_of_key_heads_unsummed, "c2", changes=one_key_head)
    assert (found.module, found.parameter.name) == (None, "layers.1.attention.k_norm.weight")
    assert 0 < found.n_wrong < found.n_parameters


@pytest.mark.slow
@pytest.mark.wide
def test_gathered_keys_in_a_wrong_order(oracle):
    _, found = look_into(oracle, leave_gathered_keys_in_the_order_of_the_ranks, "c2", cp_style="gather")
    assert (found.module.name, found.module.ranks) == ("layers.0.attention.core", ())  # of all ranks alike


@pytest.mark.slow
@pytest.mark.wide
def test_gathered_keys_whose_gradients_are_not_summed(oracle):
    _, found = look_into(oracle, leave_gradients_of_gathered_keys_unsummed, "c2", cp_style="gather")
    assert (found.module, found.parameter.name) == (None, "layers.1.attention.k_norm.weight")


@pytest.mark.slow
def test_replicas_whose_gradients_are_never_summed(oracle):
    comparison, found = look_into(oracle, leave_replicas_unsummed, "r2")
    assert any("ranks report different values of gradient norm" in problem for problem in comparison.problems)
    assert (found.module, found.n_wrong) == (None, 25)
    assert (found.parameter.cause.kind, found.parameter.cause.axes) == ("missing reduction", ("dp_replicate",))


@pytest.mark.slow
def test_a_last_micro_batch_that_is_dropped(oracle):
    _, found = look_into(oracle, drop_the_last_micro_batch, "d2", n_mbs=2)
    assert (found.module, found.n_wrong) == (None, 25)
    assert "it depends on the number of micro-batches: 1 agrees, 2 does not" in found.remarks
    assert any("one process with 2 micro-batches differs likewise" in remark for remark in found.remarks)


@pytest.mark.slow
@pytest.mark.wide
def test_a_weight_that_is_stale_after_resuming(oracle):
    comparison, found = look_into(oracle, leave_the_final_norm_stale_after_resuming, "d2", check="resume")
    assert "after loading, norm.weight is not what was saved" in comparison.problems
    assert found.weight.name == "norm.weight"
    assert "1 of 25 weights are not what was saved" in found.remarks[0]


@pytest.mark.slow
@pytest.mark.wide
def test_a_step_counter_that_is_not_resumed(oracle):
    comparison, found = look_into(oracle, forget_the_step_when_resuming, "d2", check="resume")
    assert "weights" in comparison.failed
    assert found.step == 2
    assert found.remarks[0] == "the learning rate of step 2 is 0.01, that of one process 0.0075"


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize("layout", ["d2", "r2"])
def test_a_value_head_that_no_seed_governs(oracle, layout):
    plant = draw_the_value_head_without_a_seed
    comparison, found = look_into(oracle, plant, layout, variant="critic", check="initial")
    assert comparison.failed == ("weights",)
    # Drawn for an engine without a checkpoint, and for one whose checkpoint is a language model's.
    assert (found.weight.name, found.remarks[0].partition(" initial weights")[0]) == ("head.weight", "2 of 50")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "layout", "factor", "axis", "words"),
    [
        (average_gradients_over_data_ranks, "d2", 0.5, "dp_shard", "a mean instead of a sum over dp_shard"),
        pytest.param(
            *(
                average_gradients_over_data_ranks,
                "r2",
                0.5,
                "dp_replicate",
                "a mean instead of a sum over dp_replicate",
            ),
            marks=pytest.mark.wide,
        ),
        (sum_what_every_context_rank_has_whole, "c2", 2.0, "cp", "a doubled reduction"),
    ],
)
def test_gradients_that_are_a_clean_multiple(oracle, plant, layout, factor, axis, words):
    _, found = look_into(oracle, plant, layout)
    cause = found.parameter.cause
    assert (cause.kind, cause.axes, round(cause.factor, 9)) == ("factor", (axis,), factor)
    assert (found.module, found.n_wrong) == (None, 25)
    assert words in str(cause)


@pytest.mark.slow
@pytest.mark.wide
def test_a_micro_batchs_gradient_that_is_applied_twice(oracle):
    comparison, found = look_into(oracle, apply_a_micro_batchs_gradient_twice, "p2-1F1B")
    assert {"gradients", "gradient norm"} <= set(comparison.failed)
    assert (found.module, found.parameter.name) == (None, "head.weight")
    assert (found.n_wrong, found.n_parameters) == (24, 47)
    assert (found.parameter.ranks, found.parameter.where) == ((1,), {"pp": 1})
    assert "gradients are wrong on the stages of pipeline rank 1 only (pp 1)" in found.remarks


@pytest.mark.slow
@pytest.mark.wide
@pytest.mark.parametrize("layout", ["p2-1F1B", "p2-ZBV"])
def test_copies_of_a_tied_weight_whose_gradients_are_not_summed(oracle, layout):
    comparison, found = look_into(oracle, leave_tied_copies_unsummed, layout, "tied")
    assert {"gradients", "gradient norm", "weights"} <= set(comparison.failed)
    assert (found.module, found.parameter.name, found.n_wrong) == (None, "head.weight", 2)
    assert found.parameter.cause.kind == "copies not summed"


@pytest.mark.slow
@pytest.mark.wide
def test_a_stage_that_is_fed_the_sequences_of_another_micro_batch(oracle):
    comparison, found = look_into(oracle, feed_the_last_stage_the_sequences_of_the_micro_batch_before, "p2-1F1B")
    assert {"outputs", "loss"} <= set(comparison.failed)
    assert found.module.name.startswith("layers.2.attention")
    assert (found.module.ranks, found.module.where) == ((1,), {"pp": 1})
