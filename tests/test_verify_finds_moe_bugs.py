"""Planted mistakes of mixture-of-experts training, each a patch of one place, are caught and traced.

They stand for the field's silent bugs: gradients of routers and experts that lack a reduction or are scaled by the
number of the wrong ranks, norms without experts, balancing losses that each rank counts by itself.
"""

from dataclasses import replace

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from archon_engine.assembly import experts
from archon_engine.checkpoint import hf_saving
from archon_engine.step import grad_norm, step
from archon_moe import experts as moe_experts
from archon_moe.experts import GroupedExperts
from archon_testing.cases import variant_case
from archon_testing.oracle import Oracle, Outcome
from archon_testing.requested import read_layout
from archon_testing.requested_model import read_model

pytestmark = pytest.mark.wide

ROUTER = "layers.1.moe.router.weight"
"""Of the last of two layers; the first is dense."""


def leave_router_gradients_unsummed_over_tensor_ranks():
    """Each tensor rank routes its own tokens; the gradient is taken for one that all of them have whole."""
    sum_gradients = step.sum_replicated_gradients
    step.sum_replicated_gradients = lambda parameters, mesh: sum_gradients((p for p in parameters if p.ndim < 2), mesh)


def leave_experts_out_of_the_norm():
    norm_here = grad_norm._norm_here

    def without_experts(parameters):
        return norm_here([p for p in parameters if not _is_of_experts(p)])

    grad_norm._norm_here = without_experts


def count_only_own_experts_in_the_norm():
    """The norm is summed over the axes of dense parameters."""
    sharded_axes = grad_norm._sharded_axes

    def dense_axes(gradient):
        mesh, axes = sharded_axes(gradient)
        return mesh, tuple(axis for axis in axes if mesh.mesh_dim_names[axis] != "ep")

    grad_norm._sharded_axes = dense_axes


def _is_of_experts(parameter):
    return isinstance(parameter, DTensor) and "ep" in parameter.device_mesh.mesh_dim_names


def divide_expert_gradients_by_their_data_ranks():
    """As if losses were means of each rank; dense gradients are summed rightly."""
    set_factor = FSDPModule.set_gradient_divide_factor

    def wrong_for_experts(self, factor):
        set_factor(self, 2.0 if isinstance(self, GroupedExperts) else factor)

    FSDPModule.set_gradient_divide_factor = wrong_for_experts


def count_balancing_losses_per_rank():
    """Each rank divides them by its own tokens and sequences."""
    tell = experts.ExpertBlocks.with_batch_totals

    def by_local_tokens(self, micro_batches, whole):
        batches = [micro_batch.batch for micro_batch in micro_batches]
        n_tokens, n_sequences = sum(batch.n_tokens for batch in batches), sum(map(len, batches))
        return tell(self, micro_batches, replace(whole, n_tokens=max(n_tokens, 1), n_sequences=max(n_sequences, 1)))

    experts.ExpertBlocks.with_batch_totals = by_local_tokens


BAD = 3
"""The expert that a planted mistake is in."""


def scale_one_experts_output():
    grouped = moe_experts.grouped_experts

    def wrong(x, experts, weights, n_pairs, gate, up, down, **options):
        factors = torch.ones(len(down), 1, 1, dtype=down.dtype)
        factors[BAD] = 1.5
        return grouped(x, experts, weights, n_pairs, gate, up, down * factors, **options)

    moe_experts.grouped_experts = wrong


def double_one_experts_gradient():
    grouped = moe_experts.grouped_experts

    def wrong(x, experts, weights, n_pairs, gate, up, down, **options):
        again = torch.zeros(len(down), 1, 1, dtype=down.dtype)
        again[BAD] = 1.0
        down = down + again * (down - down.detach())
        return grouped(x, experts, weights, n_pairs, gate, up, down, **options)

    moe_experts.grouped_experts = wrong


def export_one_expert_transposed():
    assemble = hf_saving.assemble_hf

    def wrong(name, *arguments):
        tensor = assemble(name, *arguments)
        return tensor.T.reshape(tensor.shape) if f".experts.{BAD}.down_proj" in name else tensor

    hf_saving.assemble_hf = wrong


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def look_into(oracle, plant, layout, **fields):
    """The verdict on one case of Qwen3-MoE with a bug, and its diagnosis."""
    asked = read_layout(layout)
    entries = read_model("qwen3_moe").entries_for(asked.n_stages)
    case = variant_case(entries, "untied", layout=str(asked.layout), **fields)
    verdicts = oracle.verify([case], before=plant)
    assert not verdicts[0].passed, "the bug was not caught"
    [diagnosis] = oracle.diagnose(Outcome(verdicts), before=plant)
    return verdicts[0].comparison, diagnosis


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["t2e2", "(attn:t2|ffn:t1e1)"])
def test_a_router_whose_gradient_is_not_summed_over_tensor_ranks(oracle, layout):
    comparison, found = look_into(oracle, leave_router_gradients_unsummed_over_tensor_ranks, layout)
    assert "gradients" in comparison.failed
    assert (found.module, found.parameter.name, found.n_wrong) == (None, ROUTER, 1)
    assert (found.parameter.cause.kind, found.parameter.cause.axes) == ("missing reduction", ("tp",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plant", "axes", "words"),
    [
        (leave_experts_out_of_the_norm, (), "leaves experts out"),
        (count_only_own_experts_in_the_norm, ("ep",), "experts of one ep rank only"),
    ],
)
def test_experts_outside_the_norm(oracle, plant, axes, words):
    comparison, found = look_into(oracle, plant, "d2e2")
    assert {"gradient norm", "weights"} <= set(comparison.failed)
    assert (found.parameter, found.norm.cause.kind, found.norm.cause.axes) == (None, "experts left out", axes)
    assert words in str(found.norm.cause)


@pytest.mark.slow
def test_expert_gradients_with_a_factor_of_the_wrong_ranks(oracle):
    comparison, found = look_into(oracle, divide_expert_gradients_by_their_data_ranks, "d2")
    assert "gradients" in comparison.failed
    assert (found.module, found.n_wrong) == (None, 3)
    assert found.parameter.name.startswith("layers.1.moe.experts.")
    cause = found.parameter.cause
    assert (cause.kind, cause.axes, round(cause.factor, 9)) == ("factor", ("edp",), 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["d2", "d2e2"])
def test_balancing_losses_that_each_rank_counts_by_itself(oracle, layout):
    comparison, found = look_into(oracle, count_balancing_losses_per_rank, layout)
    assert "gradients" in comparison.failed
    assert (found.module, found.loss, found.parameter.name) == (None, None, ROUTER)


@pytest.mark.slow
def test_an_expert_whose_output_is_wrong_is_named(oracle):
    _, found = look_into(oracle, scale_one_experts_output, "d2")
    assert found.module.name.startswith("layers.1.moe")
    assert (found.module.experts, found.alone) == ((BAD,), True)
    assert f"only expert {BAD} of " in found.lines[0]


@pytest.mark.slow
def test_an_expert_whose_gradient_is_wrong_is_named(oracle):
    _, found = look_into(oracle, double_one_experts_gradient, "t2")
    assert (found.module, found.n_wrong, found.parameter.experts) == (None, 1, (BAD,))
    assert (found.parameter.name, round(found.parameter.cause.factor, 9)) == ("layers.1.moe.experts.down_proj", 2.0)
    assert found.alone


@pytest.mark.slow
def test_an_expert_that_is_exported_transposed_is_named(oracle):
    comparison, found = look_into(oracle, export_one_expert_transposed, "d2e2", exports=True)
    assert comparison.failed == ("export",)
    assert found.export.name == f"model.layers.1.mlp.experts.{BAD}.down_proj.weight"
    assert found.export.cause.kind == "transposed"
