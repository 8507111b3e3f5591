"""Auxiliary losses against their formulas on any split of the batch; loads, bias updates, options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import Auxiliary, PackedSequences
from archon_core.errors import ConfigError
from archon_engine.nn.key_gathering import KeyGathering
from archon_engine.nn.tensor_parallel import TensorParallel
from archon_engine.nn.ulysses import ContextParallel
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_moe.balancing import update_choice_bias
from archon_moe.block import MoEBlock
from archon_moe.builder import MoEBlocks
from archon_moe.options import MoEOptions, check_options
from archon_testing.worlds import run_world

SETTINGS = MoESettings(8, 6, 8, 3, norm_topk_prob=True)
LENGTHS = (5, 2, 4, 1)
EXACT = {"rtol": 1e-11, "atol": 1e-13}
BALANCED = {
    "sequence": MoEOptions(moe_aux_loss="sequence", moe_aux_loss_coef=0.3, moe_z_loss_coef=0.2),
    "global_batch": MoEOptions(moe_aux_loss="global_batch", moe_aux_loss_coef=0.3),
}


def block(options: MoEOptions, settings: MoESettings = SETTINGS) -> MoEBlock:
    made = MoEBlocks(options).build(settings, 0).to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return made


def rows(n: int) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def formulas(made: MoEBlock, x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The balancing loss and the z-loss of a whole batch, written as their papers do."""
    s, routing = made.settings, made.router.route(*made.router(x))
    chosen = torch.nn.functional.one_hot(routing.experts, s.n_experts).sum(1).to(x.dtype)
    p = routing.scores / routing.scores.sum(1, keepdim=True)
    parts = list(zip(chosen.split(LENGTHS), p.split(LENGTHS), strict=True)) if kind == "sequence" else [(chosen, p)]
    of_parts = [(f.mean(0) * s.n_experts / s.top_k * q.mean(0)).sum() for f, q in parts]
    return torch.stack(of_parts).mean(), routing.logits.exp().sum(1).log().square().mean()


def auxiliary(reports: list[dict[str, Tensor]], group: object = None) -> Auxiliary:
    reported: dict[str, Tensor] = {}
    reports.append(reported)
    return Auxiliary(sum(LENGTHS), len(LENGTHS), lambda layer, sums: reported.update(sums), group)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", ["sequence", "global_batch"])
def test_losses_and_gradients_are_those_of_the_formulas(kind: str, score: str) -> None:
    options, settings = BALANCED[kind], replace(SETTINGS, score=score)
    made, plain = block(options, settings), block(MoEOptions(), settings)
    pack, reports = PackedSequences.from_lengths(LENGTHS), []
    x = rows(12).requires_grad_()
    y = made(x, replace(pack, auxiliary=auxiliary(reports)))
    torch.testing.assert_close(y, plain(x, pack), **EXACT)
    balance, z = formulas(made, x, kind)
    torch.testing.assert_close(reports[0]["aux_loss"], balance.detach(), **EXACT)
    if options.moe_z_loss_coef:
        torch.testing.assert_close(reports[0]["z_loss"], z.detach(), **EXACT)
    objective = plain(x, pack).sum() + options.moe_aux_loss_coef * balance + options.moe_z_loss_coef * z
    of_plain = torch.autograd.grad(plain(x, pack).sum(), [x, plain.router.weight])
    wanted = torch.autograd.grad(objective, [x, made.router.weight], allow_unused=True)
    wanted = (wanted[0], wanted[1] + of_plain[1])
    for found, of_formula in zip(torch.autograd.grad(y.sum(), [x, made.router.weight]), wanted, strict=True):
        torch.testing.assert_close(found, of_formula, **EXACT)


def test_sequence_loss_and_z_loss_do_not_depend_on_the_split_into_micro_batches() -> None:
    made, x = block(BALANCED["sequence"]), rows(12)
    made(x, replace(PackedSequences.from_lengths(LENGTHS), auxiliary=auxiliary([]))).sum().backward()
    whole, made.router.weight.grad = made.router.weight.grad, None
    reports: list[dict[str, Tensor]] = []
    for part, length in zip(x.split(LENGTHS), LENGTHS, strict=True):
        # Neither padding nor recomputation of the block changes the numbers.
        padded = torch.cat([part, rows(3)])
        pack = replace(PackedSequences.from_lengths((length, 3)), n_padding=3, auxiliary=auxiliary(reports))
        checkpoint(made, padded.requires_grad_(), pack, use_reentrant=False).sum().backward()
    torch.testing.assert_close(made.router.weight.grad, whole, **EXACT)
    totals = {name: sum(report[name] for report in reports) for name in reports[0]}
    assert totals["counts"].sum() == totals["tokens"] * 3 == 36
    with torch.no_grad():
        balance, z = formulas(made, x, "sequence")
    torch.testing.assert_close(totals["aux_loss"], balance, **EXACT)
    torch.testing.assert_close(totals["z_loss"], z, **EXACT)


def cut_over_ranks(kind: str, dealt: bool) -> float:
    """2 context ranks x 2 tensor ranks: the largest difference from one process of this rank's input gradients and the
    router's gradient summed over ranks.

    Args:
        kind: of the losses.
        dealt: whether context ranks hold two blocks of the pack each, as where they gather keys and values.
    """
    x, pack = rows(12), PackedSequences.from_lengths((*LENGTHS[:2], 3, *LENGTHS[3:], 1))
    pack = replace(pack, n_padding=1)
    alone = block(BALANCED[kind])
    whole = x.clone().requires_grad_()
    n_tokens, n_sequences = 11, 4
    alone(whole, replace(pack, auxiliary=Auxiliary(n_tokens, n_sequences, lambda *_: None))).sum().backward()

    cp, tp = divmod(dist.get_rank(), 2)
    contexts = [dist.new_group([0, 2]), dist.new_group([1, 3])]
    tensors = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    made = block(BALANCED[kind])
    made.parallel = TensorParallel(tensors[cp], tp, 2)
    context = ContextParallel(contexts[tp], cp, 2)
    if dealt:
        context = KeyGathering(contexts[tp], cp, 2, context).deal(pack)
    cut = replace(pack.cut(context), auxiliary=Auxiliary(n_tokens, n_sequences, lambda *_: None, dist.group.WORLD))
    places = cut.local_places(made.parallel)
    own = x[places].clone().requires_grad_()
    made(own, cut).sum().backward()
    gradient = made.router.weight.grad
    dist.all_reduce(gradient)
    return max(
        (own.grad - whole.grad[places]).abs().max().item(),
        (gradient - alone.router.weight.grad).abs().max().item(),
    )


def both_kinds() -> list[float]:
    return [cut_over_ranks(kind, dealt) for kind in BALANCED for dealt in (False, True)]


def test_losses_are_exact_on_sequences_sharded_over_ranks() -> None:
    assert max(max(found) for found in run_world(both_kinds, 4)) < 1e-13


def test_choice_biases_move_towards_the_mean_load() -> None:
    builder = MoEBlocks(MoEOptions(moe_bias_update_rate=0.01))
    made = builder.build(replace(SETTINGS, n_experts=4, choice_bias=True), 7)
    builder.update({"7": made}, {"7": {"counts": torch.tensor([0, 4, 12, 8])}, "8": {}})
    # The mean is 6; loads of 4 and 8 move their biases as far as loads of 0 and 12 do.
    torch.testing.assert_close(made.router.choice_bias, torch.tensor([0.01, 0.01, -0.01, -0.01]))
    builder.update({"7": made}, {"7": {"counts": torch.tensor([6, 6, 6, 6])}})
    torch.testing.assert_close(made.router.choice_bias, torch.tensor([0.01, 0.01, -0.01, -0.01]))
    assert "choice_bias" not in dict(made.router.named_parameters())
    assert "router.choice_bias" in made.state_dict()


def test_a_choice_bias_moves_tokens_and_changes_no_weights() -> None:
    made = block(MoEOptions(), replace(SETTINGS, choice_bias=True, norm_topk_prob=False))
    x = rows(12)
    before = made.router.route(*made.router(x))
    loads = torch.bincount(before.experts.flatten(), minlength=8)
    made.router.choice_bias[int(loads.argmin())] = 2.0
    after = made.router.route(*made.router(x))
    assert (after.experts == int(loads.argmin())).any(1).all()
    torch.testing.assert_close(after.weights, after.scores.gather(1, after.experts))


def test_metrics_measure_the_balance_of_expert_loads() -> None:
    def report(*counts: int, entropy: float, **losses: float) -> dict[str, Tensor]:
        scalars = {"tokens": sum(counts) / 2, "entropy": entropy, **losses}
        return {"counts": torch.tensor(counts), **{name: torch.tensor(value) for name, value in scalars.items()}}

    metrics = MoEBlocks(MoEOptions()).metrics(
        {"0": report(4, 4, 4, 4, entropy=8.0, z_loss=3.0), "1": report(0, 0, 4, 12, entropy=4.0, z_loss=5.0)}
    )
    assert metrics == {
        "expert_load_max": 3.0,
        "expert_load_max_over_mean": 2.0,
        "expert_load_min_over_mean": 0.5,
        "experts_unused": 0.25,
        "router_entropy": 0.75,
        "z_loss": 4.0,
    }
    assert MoEBlocks(MoEOptions()).metrics({}) == {}


def test_reports_of_a_batch_count_real_tokens() -> None:
    made, reports = block(MoEOptions()), []
    pack = replace(PackedSequences.from_lengths((5, 3)), n_padding=3, auxiliary=auxiliary(reports))
    with torch.no_grad():
        made(rows(8), pack)
        routing = made.router.route(*made.router(rows(8)[:5]))
    assert set(reports[0]) == {"counts", "tokens", "entropy"}
    assert reports[0]["tokens"] == 5
    torch.testing.assert_close(reports[0]["counts"], torch.bincount(routing.experts.flatten(), minlength=8))
    entropy = -(routing.scores * routing.scores.log()).sum()
    torch.testing.assert_close(reports[0]["entropy"], entropy, **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MoEOptions(moe_aux_loss="global_bach"), "found 'global_bach'; allowed are none.*did you mean 'global_batch'"),
        (MoEOptions(moe_z_loss_coef=-1.0), "moe_z_loss_coef: found -1.0; allowed are numbers from 0"),
        (MoEOptions(moe_bias_update_rate=float("nan")), "moe_bias_update_rate: found nan"),
    ],
)
def test_invalid_options_are_refused(options: MoEOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MoEBlocks(options)


@pytest.mark.parametrize(
    ("options", "has_experts", "found"),
    [
        ({}, False, ""),
        ({"moe_aux_loss": "sequence", "moe_aux_loss_coef": 0.1}, None, ""),
        ({"moe_z_loss_coef": -1.0}, None, "actor.archon.moe_z_loss_coef: found -1.0; allowed are numbers from 0"),
        ({"moe_aux_loss_coef": 0.1}, True, "found 0.1 without an auxiliary loss; set actor.archon.moe_aux_loss to"),
        ({"moe_aux_loss": "sequence"}, False, "actor.archon.moe_aux_loss: found 'sequence' for a model without exp"),
        ({"moe_aux_loss": "none"}, False, ""),
    ],
)
def test_options_without_effect_are_refused_before_a_run(
    options: dict[str, object], has_experts: bool | None, found: str
) -> None:
    config = ArchonEngineConfig()
    vars(config.archon).update(options)
    explicit = {f"actor.archon.{name}" for name in options}
    said = check_options(config, role="actor", explicit=explicit, has_experts=has_experts)
    assert found in "".join(said)
    assert len(said) == bool(found)


def test_a_bias_update_rate_for_a_model_without_biases_is_a_decision() -> None:
    blocks = MoEBlocks(MoEOptions(moe_bias_update_rate=0.01))
    for choice_bias, expected in ((False, [("0.01", "0")]), (True, [])):
        blocks.build(MoESettings(8, 6, 6, 2, choice_bias=choice_bias), 0)
        decisions = blocks.decisions("cpu", torch.float32, role="actor")
        named = [d for d in decisions if d.option == "actor.archon.moe_bias_update_rate"]
        assert [(d.requested, d.effective) for d in named] == expected


def test_choice_biases_keep_fp32_in_a_model_of_bfloat16() -> None:
    made = MoEBlocks(MoEOptions()).build(MoESettings(8, 6, 4, 2, choice_bias=True), 0)
    made.router.choice_bias.fill_(0.601)
    made.to(torch.bfloat16)
    assert made.router.weight.dtype == torch.bfloat16
    torch.testing.assert_close(made.router.choice_bias, torch.full((4,), 0.601))
    update_choice_bias(made.router.choice_bias, torch.tensor([1, 1, 5, 5]), 1e-3)
    torch.testing.assert_close(made.router.choice_bias, torch.tensor([0.602, 0.602, 0.6, 0.6]))


def test_defaults_balance_nothing() -> None:
    assert MoEBlocks(ArchonOptions()).options == MoEOptions()
