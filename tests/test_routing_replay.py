"""Routing replay: rollouts tell which experts tokens went to, and training sends them there again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import ROUTED_EXPERTS, Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import ConfigError, DataError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.trainer.rollout_batch import Rollout, build_batch
from archon_rollout.local_engine import LocalEngine
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

RECORDING = RolloutConfig(max_batch_size=3, return_routed_experts=True)
"""With fewer rows than samples: some wait, prompts are split, and the last rows are moved into places that get free."""

N_EXPERTS, TOP_K, DENSE_LAYER = 8, 2, 0


def make_engine(layout="d1", *, replay=False, model="qwen3_moe", schedule="1F1B", n_mbs=1):
    entries = {**load_target(registry().get("model", model).tiny_config)(), "initializer_range": 0.3}
    options = ArchonOptions(moe_routing_replay=replay, enable_compile=False, pp_schedule=schedule)
    config = ArchonEngineConfig(
        model_config=entries,
        dtype="float64",
        archon=options,
        optimizer=OptimizerConfig(lr=1e-2, gradient_clipping=0.0),
        mb_spec=MicroBatchSpec(n_mbs=n_mbs),
    )
    engine = assemble(
        config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=3, total_steps=None, explicit=frozenset()
    )
    engine.initialize()
    return engine


def requests(n_samples=2):
    """Prompts of several lengths; every eighth token ends a completion, so that they end at different times."""
    generator = torch.Generator().manual_seed(1)
    config = GenerationConfig(n_samples=n_samples, max_new_tokens=9, stop_token_ids=list(range(0, 128, 8)))
    return [
        GenerationRequest(
            tuple(torch.randint(0, 128, (length,), generator=generator).tolist()),
            config,
            tuple(range(10 * length, 10 * length + n_samples)),
        )
        for length in (1, 7, 4)
    ]


def rollout_batch(asked, completions):
    prompts = tuple(request.prompt_ids for request in asked)
    n_samples = sum(map(len, completions))
    rollout = Rollout(({},) * len(prompts), prompts, tuple(map(tuple, completions)))
    return build_batch(rollout.groups(), torch.zeros(n_samples))


@torch.no_grad()
def choices(engine, ids, experts=None):
    """int16 [tokens, layers, k], sorted: where the tokens of one sequence go in one pass of the whole model."""
    found = torch.full((len(ids), len(engine.module.layers), TOP_K), -1, dtype=torch.int16)
    packed = PackedSequences.from_lengths((len(ids),), head=HeadInputs(outputs=("logits",)))

    def record(layer, chosen):
        found[:, layer] = chosen

    engine.module(torch.as_tensor(ids), replace(packed, experts=experts, record_experts=record))
    return found.sort(-1).values


def gradients(engine, batch):
    stats = engine.train_batch(batch, NegativeLogLikelihood())
    whole = {}
    for name, parameter in engine.parameters.items():
        gradient = parameter.grad
        whole[name] = (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()
    return stats, whole


def test_completions_tell_where_the_tokens_of_prompt_and_completion_went():
    engine = make_engine()
    asked = requests()
    answered = LocalEngine(RECORDING, trainer=engine).generate(asked)
    lengths = set()
    for request, samples in zip(asked, answered, strict=True):
        for completion in samples:
            # Nothing was asked about the last token.
            ids = request.prompt_ids + completion.token_ids[:-1]
            assert completion.routed_experts.dtype == torch.int16
            assert completion.routed_experts.shape == (len(ids), 4, TOP_K)
            assert torch.equal(completion.routed_experts.sort(-1).values, choices(engine, ids))
            assert (completion.routed_experts[:, DENSE_LAYER] == -1).all()
            assert (completion.routed_experts[:, 1:] >= 0).all()
            lengths.add(len(completion.token_ids))
    assert len(lengths) > 2, "completions that end at different times show rows that are moved"
    assert LocalEngine(RolloutConfig(), trainer=engine).generate(asked)[0][0].routed_experts is None


def test_a_batch_holds_the_choices_of_its_tokens_and_none_for_the_last_of_each_sequence():
    asked = requests()
    answered = LocalEngine(RECORDING, trainer=make_engine()).generate(asked)
    batch = rollout_batch(asked, answered)
    field = batch.token_fields[ROUTED_EXPERTS]
    rows = field.split(list(batch.lengths))
    for row, completion in zip(rows, [c for samples in answered for c in samples], strict=True):
        assert torch.equal(row[:-1], completion.routed_experts)
        assert (row[-1] == -1).all()
    plain = [[replace(c, routed_experts=None) for c in samples] for samples in answered]
    assert ROUTED_EXPERTS not in rollout_batch(asked, plain).token_fields


def test_with_the_weights_of_the_rollout_replaying_changes_no_gradient():
    asked = requests()
    batch = rollout_batch(asked, LocalEngine(RECORDING, trainer=make_engine()).generate(asked))
    own_stats, own = gradients(make_engine(), batch)
    stats, replayed = gradients(make_engine(replay=True), batch)
    assert stats.loss == pytest.approx(own_stats.loss, rel=1e-14)
    for name, gradient in own.items():
        torch.testing.assert_close(replayed[name], gradient, rtol=0, atol=1e-13 * float(gradient.abs().max()), msg=name)


def test_tokens_go_where_a_replay_says_and_where_it_says_nothing_where_the_router_sends_them():
    engine = make_engine()
    ids = list(range(20))
    own = choices(engine, ids)
    elsewhere = other_experts(own)
    assert torch.equal(choices(engine, ids, elsewhere)[:, 1:], elsewhere[:, 1:].sort(-1).values)
    later = elsewhere.clone()
    later[:10] = -1
    mixed = choices(engine, ids, later)
    assert torch.equal(mixed[:10], own[:10]), "nothing that comes later changes what routers see"
    assert torch.equal(mixed[10:, 1:], later[10:, 1:].sort(-1).values)


def test_a_replay_that_differs_gives_another_loss_in_training_and_in_forward_passes():
    engine, plain = make_engine(replay=True), make_engine()
    batch = random_replay()
    request = OutputRequest(("logprobs",))
    assert not torch.allclose(
        engine.forward_batch(batch, request)["logprobs"], plain.forward_batch(batch, request)["logprobs"]
    )
    assert abs(gradients(engine, batch)[0].loss - gradients(plain, batch)[0].loss) > 1e-3
    without = Batch(batch.input_ids, batch.lengths)
    again, same = make_engine(replay=True), make_engine()
    assert gradients(again, without)[0].loss == gradients(same, without)[0].loss


def test_a_replay_of_another_model_is_refused():
    batch = random_replay()
    short = batch.with_fields({ROUTED_EXPERTS: batch.token_fields[ROUTED_EXPERTS][:, :2]})
    with pytest.raises(DataError, match="record them with this model"):
        make_engine(replay=True).train_batch(short, NegativeLogLikelihood())


def test_a_model_without_experts_neither_records_nor_replays():
    with pytest.raises(ConfigError, match=r"actor.archon.moe_routing_replay: found true; model 'qwen3' has no experts"):
        make_engine(model="qwen3", replay=True)
    with pytest.raises(ConfigError, match=r"rollout.return_routed_experts: found true, but the model has no experts"):
        LocalEngine(RECORDING, trainer=make_engine(model="qwen3")).generate(requests())


# On many ranks.


def other_experts(experts):
    return ((experts + 3) % N_EXPERTS).where(experts >= 0, -1)


def random_replay():
    """Sequences whose tokens go to experts that no router chose; some tokens go where the router sends them."""
    generator = torch.Generator().manual_seed(11)
    lengths = (5, 1, 12, 3, 9)
    batch = Batch.from_sequences([torch.randint(0, 128, (n,), generator=generator) for n in lengths])
    first = torch.randint(0, N_EXPERTS, (batch.n_tokens, 4, 1), generator=generator)
    second = (first + torch.randint(1, N_EXPERTS, first.shape, generator=generator)) % N_EXPERTS
    experts = torch.cat((first, second), -1).to(torch.int16)
    experts[torch.rand(batch.n_tokens, generator=generator) < 0.2] = -1
    return batch.with_fields({ROUTED_EXPERTS: experts})


def replay_and_record(layouts):
    """On every rank, per layout: loss and gradients of a replay, and what a rollout with the weights before says."""
    results = []
    for layout, schedule in layouts:
        engine = make_engine(layout, replay=True, schedule=schedule, n_mbs=2)
        asked = requests()
        answered = LocalEngine(RECORDING, trainer=engine).generate(asked)
        ranks = engine.data_ranks
        batch = random_replay()
        stats, found = gradients(engine, batch.select(range(ranks.rank, len(batch), ranks.size)))
        results.append((stats.loss, stats.gradient_norm, found, rollout_batch(asked, answered)))
        engine.close()
        if dist.is_initialized():
            dist.barrier()
    return results


FOUR_RANKS = (
    ("d2t2e4", "1F1B"),
    ("(attn:t2c2|ffn:t2e2)", "1F1B"),
    ("p2d2e2", "ZBVZeroBubble"),
)


def test_on_many_ranks_replays_and_records_are_those_of_one_process():
    [(loss, norm, expected, rolled_out)] = replay_and_record([("d1", "1F1B")])
    for results in run_world(replay_and_record, 4, (FOUR_RANKS,), time_limit=200):
        for (layout, _), (found_loss, found_norm, found, recorded) in zip(FOUR_RANKS, results, strict=True):
            assert found_loss == pytest.approx(loss, rel=1e-12), layout
            assert found_norm == pytest.approx(norm, rel=1e-9), layout
            for name, gradient in found.items():
                limit = 1e-9 * float(expected[name].abs().max())
                torch.testing.assert_close(gradient, expected[name], rtol=0, atol=limit, msg=f"{layout} {name}")
            assert torch.equal(recorded.input_ids, rolled_out.input_ids), layout
            told, right = (batch.token_fields[ROUTED_EXPERTS] for batch in (recorded, rolled_out))
            assert torch.equal(told.sort(-1).values, right.sort(-1).values), layout
