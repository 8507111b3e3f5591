"""Planted mistakes that ordinary training steps do not show, or that name themselves badly, are caught and traced.

They are in exports, in the state of a run that is resumed elsewhere, in what backward recomputes, in the type of sums,
far inside long sequences, in the optimizer's step and in the targets of the loss. Each patch works in the ranks of its
own world.
"""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial

from archon_core.contracts import packed
from archon_engine.assembly import assembled as assembly
from archon_engine.checkpoint import engine_checkpoints as checkpoints
from archon_engine.checkpoint import gathering
from archon_engine.checkpoint.dcp import SavedState
from archon_engine.data import micro_batch
from archon_engine.nn import norm, ulysses
from archon_engine.optimizer import named_optimizer as optimizer
from archon_engine.parallel import activation_checkpointing
from archon_engine.parallel.shards import holders, local_values
from archon_engine.step import loss_totals, step
from archon_testing.batches import MASK
from archon_testing.cases import variant_case
from archon_testing.oracle import Oracle, Outcome
from archon_testing.requested import read_layout
from archon_testing.requested_model import read_model

pytestmark = pytest.mark.wide

FAR = 64
"""Tiles of kernels, and parts of context ranks, have that many tokens."""


def write_received_rows_backwards():
    """What another rank sends of a matrix is written from its last row on."""
    receive = gathering._Inbox.receive

    def backwards(self, block, sender):
        receive(self, block, sender)
        if block.ndim == 2:
            block.copy_(block.flip(0))

    gathering._Inbox.receive = backwards


def export_the_final_norm_of_before_training():
    """What gathers weights keeps one from the first time that it saw it."""
    reader, first = checkpoints.EngineCheckpoints._reader, {}

    def with_an_old_norm(self, dtype):
        copy = reader(self, dtype)
        if not callable(copy):  # one process lends its weights as they are
            return copy

        def copy_old(name, box, destination):
            copy(name, box, destination)
            if name == "norm.weight" and destination is not None:
                destination.copy_(first["norm"])

        return copy_old

    remember = assembly.load_weights

    def load(module, *arguments, **options):
        loaded = remember(module, *arguments, **options)
        weight = module.norm.weight.detach()
        first["norm"] = (weight.full_tensor() if isinstance(weight, DTensor) else weight).clone()
        return loaded

    assembly.load_weights = load
    checkpoints.EngineCheckpoints._reader = with_an_old_norm


def shift_moments_that_another_layout_saved():
    """Rows of first moments land one row too far, where a sharded weight was saved in other parts."""
    load = checkpoints.load_training_state

    def shifted(folder, parameters, *others):
        state, *rest = load(folder, parameters, *others)
        saved = SavedState.open(folder).weights
        for name, entries in state.items():
            parameter = parameters[name]
            if isinstance(parameter, DTensor) and parameter.ndim == 2:
                here = {(box.start, box.shape) for box in holders(parameter).values()}
                there = {(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in saved[name].chunks}
                if here != there:
                    moment = local_values(entries["exp_avg"])
                    moment.copy_(moment.roll(1, 0))
        return state, *rest

    checkpoints.load_training_state = shifted


def save_second_moments_too_small():
    save, state = checkpoints.EngineCheckpoints.save_dcp, optimizer.NamedOptimizer.state

    def halved(self):
        return {
            name: {key: value / 2 if key == "exp_avg_sq" else value for key, value in entries.items()}
            for name, entries in state(self).items()
        }

    def save_halved(self, folder, *, version):
        optimizer.NamedOptimizer.state = halved if dist.is_initialized() else state
        save(self, folder, version=version)
        optimizer.NamedOptimizer.state = state

    checkpoints.EngineCheckpoints.save_dcp = save_halved


def recompute_blocks_from_other_inputs():
    """On several ranks, as if a collective's buffer had been used again between forward and backward."""
    wrap = activation_checkpointing._checkpoint

    def wrong(block, contexts):
        forward = block.forward

        def changed(x, *arguments, **options):
            is_wrong = dist.is_initialized() and torch._C._current_graph_task_id() != -1
            # The same operations as before, or torch would notice.
            return forward(x * (1.01 if is_wrong else 1.0), *arguments, **options)

        block.forward = changed
        wrap(block, contexts)

    activation_checkpointing._checkpoint = wrong


def sum_gradients_in_the_type_of_computation():
    apply = assembly.apply_fsdp

    def narrow(*arguments, **options):
        return apply(*arguments, **{**options, "reduce_dtype": options["compute_dtype"]})

    assembly.apply_fsdp = narrow


def let_fsdp_sum_over_tensor_ranks():
    """It does so in the type of computation, whatever the type of reductions."""

    def partial(weight):
        return weight.to_local(grad_placements=[Partial()]) if isinstance(weight, DTensor) else weight

    norm.local_weight = partial
    step.sum_replicated_gradients = lambda parameters, mesh: None


def stop_counting_positions_of_context_ranks():
    """Positions beyond a tile's length stay where they are."""
    cut = packed.PackedSequences.cut

    def capped(self, context):
        here = cut(self, context)
        return packed.replace(here, positions=here.positions.clamp(max=FAR))

    packed.PackedSequences.cut = capped


def decay_norms():
    optimizer.is_decayed = lambda name, parameter: True


def leave_sharded_matrices_undecayed():
    """A parameter is asked for its dims where only its local, flattened part is at hand."""
    optimizer.is_decayed = lambda name, parameter: parameter.ndim >= 2 and not dist.is_initialized()


def mask_the_last_target_of_every_sequence():
    """On several ranks, where targets are shifted by one too many."""
    objective = loss_totals.LossTotals.objective

    def fewer(self, outputs, micro):
        mask = micro.batch.token_fields[MASK].clone()
        for start, length in zip(micro.batch.offsets, micro.batch.lengths, strict=False):
            counted = mask[start : start + length].nonzero().flatten()
            if len(counted) > 1 and dist.is_initialized():
                mask[start + counted[-1]] = 0
        fields = {**micro.batch.token_fields, MASK: mask}
        batch = micro_batch.replace(micro.batch, token_fields=fields)
        return objective(self, outputs, micro_batch.replace(micro, batch=batch))

    loss_totals.LossTotals.objective = fewer


def lose_the_outputs_of_the_last_context_rank():
    gather = ulysses.ContextParallel.gather_outputs

    def without_the_last(self, x):
        whole = gather(self, x)
        kept = torch.arange(whole.shape[0]) < whole.shape[0] - 5
        return torch.where(kept, whole, torch.zeros_like(whole))

    ulysses.ContextParallel.gather_outputs = without_the_last


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("references"), time_limit=300)


def cases_of(layout, changes):
    """Cases of Qwen3 on a layout, one for each of ``changes``."""
    asked = read_layout(layout)
    entries = read_model("qwen3").entries_for(asked.n_stages)
    return [
        variant_case(entries, "untied", layout=str(asked.layout), schedule=asked.schedule, **fields)
        for fields in changes
    ]


def look_into(oracle, plant, layout, *changes):
    """Which cases pass with a bug, what the worst of the others says, and its diagnosis."""
    verdicts = oracle.verify(cases_of(layout, changes or [{}]), before=plant)
    passed = [verdict.passed for verdict in verdicts]
    assert not all(passed), "the bug was not caught"
    [diagnosis] = oracle.diagnose(Outcome(verdicts), before=plant)
    failing = next(verdict.comparison for verdict in verdicts if not verdict.passed)
    return passed, failing, diagnosis


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["d2", "t2"])
def test_an_export_whose_parts_from_other_ranks_are_written_backwards(oracle, layout):
    _, comparison, found = look_into(oracle, write_received_rows_backwards, layout, {"exports": True})
    assert comparison.failed == ("export",)
    assert found.export.name == "model.embed_tokens.weight"
    assert (found.export.cause.kind, found.export.ranks) == ("rows exchanged", (1,))
    assert (found.parameter, found.weight, found.alone) == (None, None, False)
    assert "exported tensors are not the weights that the ranks hold" in found.remarks[0]


@pytest.mark.slow
def test_an_export_of_a_stale_weight(oracle):
    _, comparison, found = look_into(oracle, export_the_final_norm_of_before_training, "r2", {"exports": True})
    assert comparison.failed == ("export",)
    assert (found.export.name, found.export.cause.kind) == ("model.norm.weight", "stale")
    assert not found.alone


RESUMED = (
    {"check": "resume"},
    {"check": "resume", "resume_on": "archon:t2"},
    {"check": "resume", "resume_on": "archon:d1"},
)


@pytest.mark.slow
def test_optimizer_state_that_is_wrong_on_another_layout_only(oracle):
    passed, comparison, found = look_into(oracle, shift_moments_that_another_layout_saved, "d2", *RESUMED)
    assert passed == [True, False, True]
    assert any(problem.startswith("after loading, the optimizer's ") for problem in comparison.problems)
    assert found.state.name.endswith(" exp_avg")
    assert found.state.cause.kind == "rows exchanged"
    assert "weights are right after loading" in found.remarks[0]
    assert "what archon:d2 saved is right: archon:d2 and archon:d1 went on with it rightly" in found.remarks[1]


@pytest.mark.slow
def test_optimizer_state_that_is_saved_wrongly_is_wrong_wherever_it_is_resumed(oracle):
    passed, comparison, found = look_into(oracle, save_second_moments_too_small, "d2", *RESUMED)
    assert passed == [False] * 3
    assert "after loading, the optimizer's embed.weight exp_avg_sq" in comparison.problems[0]
    assert (found.state.name, round(found.state.cause.factor, 9)) == ("embed.weight exp_avg_sq", 0.5)
    assert "no layout goes on rightly with what archon:d2 saved: look at saving first" in found.remarks


@pytest.mark.slow
def test_a_recomputation_from_other_inputs(oracle):
    modes = [{"recompute": mode} for mode in ("none", "full", "selective")]
    passed, comparison, found = look_into(oracle, recompute_blocks_from_other_inputs, "d2", *modes)
    assert passed == [True, False, False]
    assert {"gradients", "gradient norm"} <= set(comparison.failed)
    assert (found.recomputed, found.alone, found.module) == (True, False, None)
    assert "the mistake is in what backward recomputes" in found.lines[0]
    assert any(remark.startswith("it depends on activation checkpointing: ac_mode full") for remark in found.remarks)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["d2", "c2"])
def test_gradients_that_are_summed_in_bfloat16(oracle, layout):
    changes = ({"dtype": "float32"}, {"check": "precision"})
    passed, comparison, found = look_into(oracle, sum_gradients_in_the_type_of_computation, layout, *changes)
    assert passed == [True, False]
    assert comparison.failed == ()
    assert comparison.problems[0].startswith("gradients of layers' matrices are summed in bfloat16: 100%")
    assert (found.parameter, found.alone) == (None, False)
    assert found.remarks[0] == comparison.problems[0]


@pytest.mark.slow
def test_gradients_of_norms_that_tensor_ranks_sum_in_bfloat16(oracle):
    changes = ({"dtype": "float32"}, {"check": "precision"})
    passed, comparison, _ = look_into(oracle, let_fsdp_sum_over_tensor_ranks, "t2", *changes)
    assert passed == [True, False]
    assert comparison.failed == ()
    [problem] = set(comparison.problems)
    assert problem.startswith("gradients of layers' norms are summed in bfloat16: 100%")


@pytest.mark.slow
def test_positions_that_are_wrong_far_inside_long_sequences(oracle):
    _, _, found = look_into(oracle, stop_counting_positions_of_context_ranks, "c2")
    assert (found.module.name, found.module.first_position) == ("rotary", FAR + 1)
    assert f"only tokens from position {FAR + 1} of their sequence on" in found.lines[0]


@pytest.mark.slow
def test_weight_decay_of_norms_is_named_and_not_the_layouts(oracle):
    _, comparison, found = look_into(oracle, decay_norms, "d2")
    assert "weights" in comparison.failed
    assert any("applies weight decay, which vectors do not have" in problem for problem in comparison.problems)
    assert (found.parameter, found.norm, found.weight.cause.kind) == (None, None, "decay unwanted")
    assert "weight decay is to blame: 9 of 9 vectors differ like that" in found.remarks
    assert found.alone
    assert "one process differs likewise, so the layout is not to blame" in found.lines[0]
    assert not any("the mistake is in" in line for line in found.lines)


@pytest.mark.slow
def test_weight_decay_that_sharded_matrices_lack(oracle):
    _, comparison, found = look_into(oracle, leave_sharded_matrices_undecayed, "t2")
    assert any("leaves out weight decay, which matrices have" in problem for problem in comparison.problems)
    assert (found.weight.cause.kind, found.alone) == ("decay missing", False)
    assert "the mistake is in the step" in found.lines[0]
    assert "weight decay is to blame: 16 of 16 matrices differ like that" in found.remarks


@pytest.mark.slow
def test_a_loss_that_is_given_fewer_targets(oracle):
    _, comparison, found = look_into(oracle, mask_the_last_target_of_every_sequence, "d2")
    assert {"loss", "gradients"} <= set(comparison.failed)
    assert any(problem.startswith("step 1: the loss is applied to ") for problem in comparison.problems)
    assert found.module is None
    assert found.remarks[0].startswith("fewer targets: the loss is applied to ")


@pytest.mark.slow
def test_outputs_that_are_lost_between_the_head_and_the_loss(oracle):
    _, comparison, found = look_into(oracle, lose_the_outputs_of_the_last_context_rank, "c2")
    assert {"loss", "outputs"} <= set(comparison.failed)
    assert found.module is None
    lost = [remark for remark in found.remarks if "although all modules agree" in remark]
    assert any("are zero, so that the loss has fewer targets: logprobs" in remark for remark in lost)
