"""The gated delta rule against its definition, token by token; packs against sequences; context ranks against one."""

import pytest
import torch
import torch.distributed as dist

from archon_core.contracts.packed import PackedSequences
from archon_engine.nn.delta_rule.chunks import ChunkPlan
from archon_engine.nn.delta_rule.convolution import causal_convolution
from archon_engine.nn.delta_rule.rule import NORM_EPS, gated_delta_rule, segment_map
from archon_engine.nn.delta_rule.segments import Segments
from archon_engine.nn.gated_delta_net import DeltaNetSettings, GatedDeltaNet
from archon_engine.nn.ulysses import ContextParallel
from archon_testing.worlds import run_world

SETTINGS = DeltaNetSettings(
    hidden_size=6,
    n_key_heads=2,
    n_value_heads=4,
    key_dim=4,
    value_dim=3,
    filter_length=4,
    hidden_act="silu",
    norm_eps=1e-6,
)

PACKS = [(24,), (1, 1, 1, 21), (5, 7, 1, 11), (1,) * 12, (13, 11), (3, 9)]
"""Lengths of 12 and 24 tokens: sequences over all ranks, sequences of one token, cuts on boundaries."""


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(n_tokens, seed=0):
    """q, k, v, log-decays that let a state outlive the sequence, and betas."""
    q, k, v = random(n_tokens, 2, 4, seed=seed), random(n_tokens, 2, 4, seed=seed + 1), random(n_tokens, 4, 3, seed=2)
    return q, k, v, -0.1 * random(n_tokens, 4, seed=3).exp(), random(n_tokens, 4, seed=4).sigmoid()


def by_definition(q, k, v, log_decay, beta, state):
    """One token after the other, with outer products."""
    outputs = []
    q, k = (x / (x.square().sum(-1, keepdim=True) + NORM_EPS).sqrt() for x in (q, k))
    for q_t, k_t, v_t, g_t, beta_t in zip(q, k, v, log_decay, beta, strict=True):
        heads = []
        for head in range(4):
            key = k_t[head // 2]
            before = state[head] * g_t[head].exp()
            correction = beta_t[head] * (v_t[head] - before.T @ key)
            heads.append(before + torch.outer(key, correction))
        state = torch.stack(heads)
        outputs.append(torch.stack([state[head].T @ q_t[head // 2] / 2 for head in range(4)]))
    return torch.stack(outputs), state


@pytest.mark.parametrize("lengths", [(1,), (70,), (3, 130, 64, 1, 65)])
def test_chunks_give_the_rule_of_single_tokens(lengths):
    arguments = inputs(sum(lengths))
    initial = random(len(lengths), 4, 4, 3, seed=5)
    out, final = gated_delta_rule(*arguments, lengths, initial)
    parts = zip(*(x.split(lengths) for x in arguments), initial, strict=True)
    expected = [by_definition(*part) for part in parts]
    torch.testing.assert_close(out, torch.cat([one for one, _ in expected]), rtol=0, atol=1e-12)
    torch.testing.assert_close(final, torch.stack([state for _, state in expected]), rtol=0, atol=1e-12)


def test_a_segment_changes_the_state_by_an_affine_map():
    q, *rest = inputs(90)
    before = random(1, 4, 4, 3, seed=6)
    transition, offset = segment_map(*rest)
    _, after = gated_delta_rule(q, *rest, (90,), before)
    torch.testing.assert_close(transition @ before[0] + offset, after[0], rtol=0, atol=1e-12)


def test_decays_of_heads_that_forget_fast_keep_their_precision():
    """Sums of logarithms from the start of a chunk reach hundreds, so their differences would lose digits."""
    lengths, exact = (70, 130), [x.requires_grad_() for x in inputs(200)]
    with torch.no_grad():
        exact[3].mul_(20)
    rounded = [x.detach().float().requires_grad_() for x in exact]
    with torch.no_grad():
        for x, narrow in zip(exact, rounded, strict=True):
            x.copy_(narrow)
    upstream = random(200, 4, 3, seed=7)
    expected = torch.autograd.grad(gated_delta_rule(*exact, lengths)[0], exact, upstream)
    found = torch.autograd.grad(gated_delta_rule(*rounded, lengths)[0], rounded, upstream.float())
    errors = [float((f - e).abs().max() / e.abs().max()) for f, e in zip(found, expected, strict=True)]
    assert max(errors) < 1e-6, errors


def test_every_token_has_one_place_in_the_chunks():
    plan = ChunkPlan.of((5, 0, 12, 1, 8), size=4)
    assert plan.active == (4, 3, 1)
    assert (plan.n_chunks, len(plan.rows), len(set(plan.rows.tolist()))) == (8, 26, 26)
    assert [row // 4 for row in plan.rows.tolist()[5:17]] == [0] * 4 + [4] * 4 + [7] * 4


@pytest.mark.parametrize(
    ("start", "n_tokens", "lengths", "offset"),
    [(0, 6, (3, 3), 0), (6, 6, (5, 1), 3), (12, 6, (6,), 1), (3, 4, (4,), 0), (18, 2, (2,), 7)],
)
def test_segments_are_the_parts_of_sequences_among_own_tokens(start, n_tokens, lengths, offset):
    assert Segments.within((3, 8, 9), start, n_tokens) == Segments(lengths, offset)


def test_a_convolution_reads_only_its_own_sequence_and_history():
    lengths, x, filters = (2, 6, 1), random(9, 5), random(5, 4, seed=1)
    history = random(3, 3, 5, seed=2)
    got, last = causal_convolution(x, filters, lengths, history)
    for number, part in enumerate(x.split(lengths)):
        seen = torch.cat((history[number], part))
        alone = torch.nn.functional.conv1d(seen.T[None], filters[:, None], groups=5)[0].T
        torch.testing.assert_close(got.split(lengths)[number], alone)
        torch.testing.assert_close(last[number], seen[-3:])
    fresh, _ = causal_convolution(x, filters, lengths)
    torch.testing.assert_close(fresh, causal_convolution(x, filters, lengths, torch.zeros(3, 3, 5).double())[0])


def layer():
    module = GatedDeltaNet(SETTINGS, 0).double()
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=number))
        module.decay.weight.sub_(2.0)
    return module


def worst_difference(context, lengths):
    """The largest difference of this rank's outputs and gradients from those of whole packs, relative to magnitudes
    above 1. Single tokens give decays no gradient."""
    packed, module = PackedSequences.from_lengths(lengths), layer()
    x, upstream = random(sum(lengths), 6, seed=1), random(sum(lengths), 6, seed=2)
    whole = x.clone().requires_grad_()
    expected = module(whole, packed)
    of_whole = torch.autograd.grad(expected, [whole, *module.parameters()], upstream)
    own = context.local_tokens(x).clone().requires_grad_()
    result = module(own, packed.cut(context))
    of_own = torch.autograd.grad(result, [own, *module.parameters()], context.local_tokens(upstream))
    sums = [gradient.clone() for gradient in of_own[1:]]
    for gradient in sums:
        dist.all_reduce(gradient, group=context.group)
    pairs = [(result, context.local_tokens(expected)), (of_own[0], context.local_tokens(of_whole[0]))]
    pairs += zip(sums, of_whole[1:], strict=True)
    return max(float((found - right).abs().max() / right.abs().max().clamp(min=1.0)) for found, right in pairs)


def differences():
    found = []
    for size in (2, 3, 4):
        group = dist.new_group(range(size))
        if dist.get_rank() < size:
            context = ContextParallel(group, dist.get_rank(), size)
            # Packs of 12 tokens give a rank of 4 no more tokens than a filter looks back.
            found += [(f"c{size} {lengths}", worst_difference(context, lengths)) for lengths in PACKS]
    return found


def test_context_ranks_pass_states_and_give_the_numbers_of_whole_packs():
    for found in run_world(differences, 4):
        assert [case for case, error in found if not error < 1e-11] == []
        assert len(found) >= len(PACKS)
