"""The engine on many ranks, beyond what ``archon verify`` compares: refusals, precision, several engines, Muon, and
generation."""

import math
from itertools import chain

import pytest
import torch
import torch.distributed as dist

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import DataError, LayoutError
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rollout.decode_weights import LEAST_STEPS
from archon_rollout.local_engine import LocalEngine
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

VOCABULARY = 128


def make_engine(layout, *, optimizer="adamw", lr=1e-2, role="actor", seed=5, changes=None, n_mbs=1, **options):
    config = {
        **load_target(registry().get("model", "qwen3").tiny_config)(),
        "initializer_range": 0.3,
        **(changes or {}),
    }
    section = ArchonEngineConfig if "archon" in options else EngineConfig
    engine = assemble(
        section(
            **{
                "model_config": config,
                "dtype": "float64",
                "optimizer": OptimizerConfig(type=optimizer, lr=lr),
                "mb_spec": MicroBatchSpec(n_mbs=n_mbs),
                **options,
            }
        ),
        role=role,
        layout=parse_layout(f"archon:{layout}"),
        seed=seed,
        total_steps=None,
    )
    engine.initialize()
    return engine


def world_size(layout):
    return parse_layout(f"archon:{layout}").world_size


def sequences(seed, lengths=(4, 9, 1, 6, 3)):
    generator = torch.Generator().manual_seed(seed)
    return Batch.from_sequences([torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths])


def share(engine, batch):
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def whole(tensor):
    with torch.no_grad():
        return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(engine, n_steps=3):
    """Statistics of steps on the same batches, whatever the layout."""
    return [engine.train_batch(share(engine, sequences(step)), NegativeLogLikelihood()) for step in range(n_steps)]


def weights_after_training(layout, options):
    engine = make_engine(layout, **options)
    train(engine)
    weights = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    engine.close()
    return weights


def weights_of_all(cases):
    return [weights_after_training(*case) for case in cases]


def assert_equal_weights(found, expected, what):
    for name, weight in expected.items():
        largest = float(weight.abs().max())
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-9 * largest, msg=f"{what}: {name}")


@pytest.mark.parametrize("layout", ["d3", "d2t2", pytest.param("r2c2", marks=pytest.mark.wide)])
def test_muon_moves_sharded_matrices_as_one_process_does(layout):
    options = {"optimizer": "muon", "n_mbs": 2}
    expected = weights_after_training("d1", options)
    for found in run_world(weights_after_training, world_size(layout), (layout, options)):
        assert_equal_weights(found, expected, layout)


ARCHITECTURES = {
    "odd numbers of heads": {"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 36},
    "one key head": {"num_key_value_heads": 1},
    "sliding windows": {
        "use_sliding_window": True,
        "sliding_window": 3,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "rotation by each sequence's length": {
        "max_position_embeddings": 4,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    },
}


CONTEXT = {
    2: {"c2 gather": "rotation by each sequence's length"},
    3: {"c3": "odd numbers of heads"},
    4: {
        "c2t2": "odd numbers of heads",
        "c4": "one key head",
        "r2c2": "sliding windows",
        "c4 gather": "sliding windows",
        "c4 hybrid": "odd numbers of heads",
    },
}
"""Number of ranks -> layouts with their styles, of one world, and the architecture of each."""


@pytest.fixture(scope="module")
def of_one_process():
    """Weights by architecture."""
    return {
        name: weights_after_training("d1", {"changes": {"num_hidden_layers": 2, **changes}})
        for name, changes in ARCHITECTURES.items()
    }


@pytest.mark.parametrize("n_ranks", CONTEXT)
def test_context_ranks_attend_as_one_process_does_in_any_architecture(of_one_process, n_ranks):
    cases = []
    for place, architecture in CONTEXT[n_ranks].items():
        layout, _, style = place.partition(" ")
        changes = {"num_hidden_layers": 2, **ARCHITECTURES[architecture]}
        cases.append((layout, {"changes": changes, "archon": ArchonOptions(cp_style=style or "auto")}))
    for of_rank in run_world(weights_of_all, n_ranks, (cases,)):
        for (place, architecture), found in zip(CONTEXT[n_ranks].items(), of_rank, strict=True):
            assert_equal_weights(found, of_one_process[architecture], place)


def refusal(layout, changes):
    with pytest.raises(LayoutError) as refused:
        make_engine(layout, changes=changes)
    return str(refused.value)


@pytest.mark.parametrize(
    ("layout", "changes", "what", "fix"),
    [
        ("t3", {}, "attention heads (8), ", "the largest t below 3 that works is t2"),
        ("t6", {"num_key_value_heads": 1}, "attention heads (8), ", "the largest t below 6 that works is t4"),
        ("t4", {"vocab_size": 9}, "embed outputs (9), head outputs (9) are too few", "t below 4 that works is t2"),
        ("t2", {"intermediate_size": 47}, "mlp.down_proj inputs (47)", "no smaller one does; leave t out"),
    ],
)
def test_a_size_that_does_not_divide_is_refused_with_the_largest_that_does(layout, changes, what, fix):
    message = refusal(layout, changes)
    assert f"actor.backend 'archon:{layout}': found {layout if len(layout) == 2 else layout[-2:]};" in message
    assert what in message
    assert fix in message


def test_a_layout_for_another_number_of_processes_is_refused():
    assert "found 1 running process, the layout needs 4" in refusal("d4", {})
    (message, _) = run_world(refusal, 2, ("d4", {}))
    assert "found 2 running processes, the layout needs 4" in message


def mismatched_batches():
    engine = make_engine("t2")
    with pytest.raises(DataError) as refused:
        engine.train_batch(sequences(dist.get_rank()), NegativeLogLikelihood())
    return str(refused.value)


def test_tensor_ranks_that_were_given_different_sequences_are_told():
    for message in run_world(mismatched_batches, 2):
        assert "found different sequences on processes of data rank 0" in message


class WithoutGraph(NegativeLogLikelihood):
    """Gives a plain zero for micro-batches that begin with a long sequence, or always."""

    def __init__(self, *, always=False):
        self.always = always

    def __call__(self, outputs, micro_batch):
        if self.always or micro_batch.lengths[0] > 4:
            return LossSums({"token": torch.zeros((), dtype=torch.float64)})
        return super().__call__(outputs, micro_batch)


class Scaled(NegativeLogLikelihood):
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": self.factor * super().__call__(outputs, micro_batch).terms["token"]})


class Failing(NegativeLogLikelihood):
    """Fails in the second micro-batch, or on weighing."""

    def __init__(self, *, on_weighing=False):
        self.on_weighing = on_weighing
        self.calls = 0

    def weights(self, batch):
        if self.on_weighing:
            raise ValueError("cannot weigh")
        return super().weights(batch)

    def __call__(self, outputs, micro_batch):
        self.calls += 1
        if self.calls == 2:
            raise ValueError("cannot score")
        return super().__call__(outputs, micro_batch)


def message_of(call, *arguments):
    try:
        call(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def misfortunes(layout, folder):
    """Numbers and messages of an engine whose micro-batches are single sequences, when something goes wrong."""
    engine = make_engine(layout, mb_spec=MicroBatchSpec(max_tokens_per_mb=9, n_mbs=5))
    engine.save(folder / layout, "hf")
    is_first = engine.data_ranks.rank == 0
    batch = share(engine, sequences(0))
    numbers = [engine.train_batch(batch, WithoutGraph()).gradient_norm]
    messages = [message_of(engine.train_batch, batch, WithoutGraph(always=True))]

    before = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    stats = engine.train_batch(batch, Scaled(torch.inf if is_first else 1))
    assert stats.skipped
    assert not math.isfinite(stats.gradient_norm)
    assert all(torch.equal(whole(parameter), before[name]) for name, parameter in engine.parameters.items())
    numbers.append(engine.train_batch(batch, NegativeLogLikelihood()).gradient_norm)

    too_long = Batch.from_sequences([torch.arange(10)])
    messages.append(message_of(engine.train_batch, too_long if is_first else batch, NegativeLogLikelihood()))
    unknown = Batch.from_sequences([[1, VOCABULARY]])
    messages.append(message_of(engine.forward_batch, unknown if is_first else batch, OutputRequest()))
    messages.append(message_of(engine.train_batch, batch, Failing(on_weighing=is_first)))
    numbers.append(engine.train_batch(batch, NegativeLogLikelihood()).gradient_norm)

    # What a failed pass left behind must not hide the weights that are loaded next.
    messages.append(message_of(engine.train_batch, share(engine, sequences(0, (3,) * 8)), Failing()))
    engine.load(folder / layout, "hf")
    numbers.append(engine.eval_batch(batch, NegativeLogLikelihood()).loss)
    numbers.append(engine.train_batch(batch, NegativeLogLikelihood()).gradient_norm)
    return numbers, messages


def test_what_goes_wrong_on_one_rank_goes_wrong_on_all_and_training_can_go_on(tmp_path):
    expected, messages_of_one = misfortunes("d1", tmp_path)
    no_gradient, too_long, unknown_id, cannot_weigh, cannot_score = messages_of_one
    assert no_gradient.startswith("TrainingError: loss WithoutGraph: found no term with a gradient")
    assert too_long.startswith("DataError: actor.mb_spec.max_tokens_per_mb=9: found a sequence of 10 tokens")
    assert unknown_id.startswith("DataError: batch: found token id 128; the model's vocabulary has ids 0 to 127")
    assert cannot_weigh == "ValueError: cannot weigh"
    assert cannot_score == "ValueError: cannot score"
    for rank, (numbers, messages) in enumerate(run_world(misfortunes, 4, ("d2t2", tmp_path))):
        assert numbers == pytest.approx(expected, rel=1e-9)
        if rank < 2:  # the tensor ranks of the first data rank
            assert messages == messages_of_one
        else:
            assert messages[0] == no_gradient
            assert messages[1] == too_long.replace("DataError: ", "DataError: rank 0 failed: ")
            assert messages[2] == unknown_id.replace("DataError: ", "DataError: rank 0 failed: ")
            assert messages[3] == "TrainingError: rank 0 failed: ValueError: cannot weigh"
            assert messages[4] == cannot_score


def mismatched_fields():
    engine = make_engine("t2")
    advantages = torch.full((23,), float(dist.get_rank()), dtype=torch.bfloat16)
    with pytest.raises(DataError) as refused:
        engine.train_batch(sequences(0).with_fields({"advantages": advantages}), NegativeLogLikelihood())
    return str(refused.value)


def test_tensor_ranks_that_were_given_different_fields_are_told():
    for message in run_world(mismatched_fields, 2):
        assert "data rank 0" in message
        assert "including fields" in message


def empty_batches():
    engine = make_engine("d2")
    batch = sequences(0)
    with pytest.raises(DataError, match="found no sequence on any data rank"):
        engine.train_batch(batch.select([]), NegativeLogLikelihood())
    first = dist.get_rank() == 0
    outputs = engine.forward_batch(batch if first else batch.select([]), OutputRequest())
    return outputs["logprobs"], engine.eval_batch(batch if first else batch.select([]), NegativeLogLikelihood())


def test_a_rank_without_sequences_joins_in_and_no_sequence_anywhere_is_an_error():
    (everything, stats), (nothing, same_stats) = run_world(empty_batches, 2)
    single = make_engine("d1")
    torch.testing.assert_close(everything, single.forward_batch(sequences(0), OutputRequest())["logprobs"])
    assert nothing.shape == (0,)
    assert stats == same_stats
    assert stats.loss == pytest.approx(single.eval_batch(sequences(0), NegativeLogLikelihood()).loss, rel=1e-12)
    assert stats.n_tokens == 23


def actor_and_reference(layout):
    actor, reference = make_engine(layout), make_engine(layout, role="ref", seed=6, optimizer="adamw")
    outputs = []
    for step in range(2):
        train(actor, 1)
        own = reference.forward_batch(share(reference, sequences(step)), OutputRequest())["logprobs"]
        outputs.append(reference.data_ranks.gather(own))
    reference.close()
    return [stats.loss for stats in train(actor)], outputs


def test_two_engines_in_one_process_keep_out_of_each_others_way():
    (expected, _) = actor_and_reference("d1")
    for losses, (first, second) in run_world(actor_and_reference, 4, ("d2t2",)):
        assert losses == pytest.approx(expected, rel=1e-9)
        assert [o.shape for o in first] == [o.shape for o in second]
        single = make_engine("d1", role="ref", seed=6).forward_batch(sequences(1), OutputRequest())["logprobs"]
        torch.testing.assert_close(torch.cat(second).sort().values, single.sort().values)


def precision(layout):
    engine = make_engine(layout, dtype="bfloat16", lr=1e-5)
    before = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    first = train(engine, 1)[0]
    after = {name: whole(parameter) for name, parameter in engine.parameters.items()}
    types = {(parameter.dtype, parameter.grad.dtype) for parameter in engine.parameters.values()}
    name = "layers.0.mlp.up_proj.weight"
    kept = (after[name] != before[name]).double().mean().item()
    seen = (after[name].bfloat16() != before[name].bfloat16()).double().mean().item()
    return types, kept, seen, first


@pytest.mark.parametrize("layout", ["d1", "d2", "d2t2"])
def test_bfloat16_computes_beside_fp32_weights_which_keep_what_it_could_not(layout):
    exact = make_engine("d1", dtype="float32")
    expected = train(exact, 1)[0]
    for types, kept, seen, stats in run_world(precision, world_size(layout), (layout,)):
        assert types == {(torch.float32, torch.float32)}
        assert kept > 0.99
        assert seen < 0.05
        # bfloat16 has 8 bits: rounding, not another computation.
        assert stats.loss == pytest.approx(expected.loss, rel=0.02)
        assert stats.gradient_norm == pytest.approx(expected.gradient_norm, rel=0.1)


def spelled(ids):
    return " ".join(map(str, ids))


def generate(layout):
    engine = make_engine(layout)
    train(engine, 1)
    rollout = LocalEngine(RolloutConfig(max_batch_size=3), trainer=engine)
    # Long enough for weights in another memory order, although most completions end early.
    stops = {"stop_token_ids": [3, 40, 90], "stop": ["7", "5 1"]}
    config = GenerationConfig(n_samples=2, max_new_tokens=LEAST_STEPS, frequency_penalty=0.5, **stops)
    prompts = [tuple(ids.tolist()) for ids in sequences(9).input_ids.split(sequences(9).lengths)]
    requests = [GenerationRequest(prompt, config, (2 * i, 2 * i + 1), spelled) for i, prompt in enumerate(prompts)]
    ranks = engine.data_ranks
    places = range(ranks.rank, len(requests), ranks.size)
    completions = rollout.generate([requests[i] for i in places])
    gathered = ranks.gather(dict(zip(places, completions, strict=True)))
    after = train(engine, 1)[0]
    return [part[i] for i in range(len(requests)) for part in gathered if i in part], after.loss


@pytest.mark.parametrize(
    "layout", ["d2", "t4", "c2t2", *(pytest.param(layout, marks=pytest.mark.wide) for layout in ("d6", "r2c2"))]
)
def test_ranks_generate_their_shares_and_all_together_what_one_process_does(layout):
    expected, loss = generate("d1")
    assert any("7" in spelled(c.token_ids) for c in chain(*expected)), "a stop text must end some completion"
    for completions, loss_afterwards in run_world(generate, world_size(layout), (layout,)):
        assert [[c.token_ids for c in samples] for samples in completions] == [
            [c.token_ids for c in samples] for samples in expected
        ]
        for found, wanted in zip(chain(*completions), chain(*expected), strict=True):
            assert found.logprobs == pytest.approx(wanted.logprobs, abs=1e-9)
        assert loss_afterwards == pytest.approx(loss, rel=1e-9)
