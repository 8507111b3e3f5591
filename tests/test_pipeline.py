"""Pipelines beyond what ``archon verify`` compares: options, lengths that change, moves between layouts, generation,
refusals. Numbers are those of one process in float64."""

import dataclasses
import sys
import types
from datetime import timedelta
from itertools import chain

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.pipeline import Action, ActionKind, ScheduleSpec
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_core.errors import PluginError, TrainingError
from archon_core.run_files.pipeline import parse_recording
from archon_engine.models.staged import stages_of
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rollout.local_engine import LocalEngine
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import WorldError, run_world

VOCABULARY = 128
CLOSE = 1e-9
"""Sums in another order, in float64."""

SCHEDULES = ("GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBVZeroBubble")
LENGTHS = ((4, 9, 1, 6, 3, 2, 8), (1,), (30, 2, 2), (5, 5, 5, 5, 5, 5, 5, 5, 5, 5))
"""Of the sequences of each step: more than stages, fewer, other sums."""


def world_size(layout):
    return parse_layout(f"archon:{layout}").world_size


def make_engine(
    layout,
    *,
    layers=4,
    path=None,
    seed=5,
    optimizer="adamw",
    changes=None,
    written=(),
    gradient_checkpointing=False,
    n_mbs=1,
    critic=False,
    dtype="float64",
    **options,
):
    tiny = load_target(registry().get("model", "qwen3").tiny_config)()
    config = {**tiny, "num_hidden_layers": layers, "initializer_range": 0.3, **(changes or {})}
    engine = assemble(
        ArchonEngineConfig(
            path=path and str(path),
            model_config=None if path else config,
            dtype=dtype,
            is_critic=critic,
            gradient_checkpointing=gradient_checkpointing,
            mb_spec=MicroBatchSpec(n_mbs=n_mbs),
            optimizer=OptimizerConfig(type=optimizer, lr=1e-2),
            archon=ArchonOptions(**{"enable_compile": False, **options}),
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=seed,
        total_steps=None,
        explicit=frozenset(f"actor.archon.{name}" for name in written),
    )
    engine.initialize()
    return engine


def share(engine, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.from_sequences([torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths])
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def whole(tensor):
    with torch.no_grad():
        return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(engine, steps=(0, 1, 2, 3)):
    """Loss, norm and tokens of steps on the same batches, whatever the layout."""
    told = []
    for step in steps:
        stats = engine.train_batch(share(engine, LENGTHS[step], step), NegativeLogLikelihood())
        told += [stats.loss, stats.gradient_norm, stats.n_tokens]
    return told


def gradients_and_weights(engine):
    """Name -> gradient of the last step and weight, of what this process holds."""
    return {name: (whole(p.grad), whole(p)) for name, p in engine.parameters.items()}


def run(layout, options):
    engine = make_engine(layout, **options)
    told = train(engine)
    found = gradients_and_weights(engine)
    n_whole = sum(isinstance(p, FSDPModule) and not is_freed(p) for p in engine.module.modules())
    decisions = [(decision.option, decision.effective) for decision in engine.decisions]
    engine.close()
    return told, found, n_whole, decisions


def is_freed(module):
    return all(hasattr(p, "device_mesh") for p in module.parameters(recurse=False))


def assert_equal(ranks, alone):
    """Each rank's numbers are one process's; together they hold every parameter."""
    told, expected = alone
    seen = set()
    for own_told, found, *_ in ranks:
        assert own_told == pytest.approx(told, rel=CLOSE)
        for name, pair in found.items():
            original = name if name in expected else "embed.weight"
            assert original == name or name == "head.weight"
            seen.add(original)
            for value, other in zip(pair, expected[original], strict=True):
                torch.testing.assert_close(value, other, rtol=0, atol=CLOSE * float(other.abs().max()), msg=name)
    assert seen == expected.keys()


def alone(**options):
    engine = make_engine("d1", **options)
    return train(engine), gradients_and_weights(engine)


# Options: every run below changes length in every step, has one of fewer sequences than stages, and a tied head.

TIED = {"changes": {"tie_word_embeddings": True}}
OPTIONS = {
    "plain": {},
    "full": {"gradient_checkpointing": True, "ac_mode": "full"},
    "every third": {"gradient_checkpointing": True, "selective_ac_option": "3"},
    "default recomputation": {"gradient_checkpointing": True},
    "reduced each": {"pp_reduce_grad_per_microbatch": True},
    "freed": {"reshard_after_forward_policy": "always"},
    "freed and recomputed": {
        "reshard_after_forward_policy": "always",
        "gradient_checkpointing": True,
        "ac_mode": "full",
    },
    "freed and reduced each": {"reshard_after_forward_policy": "always", "pp_reduce_grad_per_microbatch": True},
    "kept": {"reshard_after_forward_policy": "never", "n_mbs": 7},
}


QUICK = ("ZBVZeroBubble",)
BRIEF = ("plain", "default recomputation", "freed and reduced each", "kept")
"""For schedules without split backward passes; ZBV and IZB run with all options."""


def options_of(schedule):
    return OPTIONS if registry().get("schedule", schedule).splits_backward else {name: OPTIONS[name] for name in BRIEF}


def run_all_options(layout, schedule):
    options = options_of(schedule)
    return {name: run(layout, {**TIED, "pp_schedule": schedule, **options[name]}) for name in options}


@pytest.mark.slow
@pytest.mark.parametrize(
    "schedule", [*QUICK, *(pytest.param(name, marks=pytest.mark.wide) for name in SCHEDULES if name not in QUICK)]
)
def test_no_option_changes_a_number_on_any_schedule(schedule):
    expected = alone(**TIED)
    ranks = run_world(run_all_options, 2, ("p2", schedule), time_limit=120)
    for name in options_of(schedule):
        found = [of_rank[name] for of_rank in ranks]
        assert_equal(found, expected)
        assert [n_whole for _, _, n_whole, _ in found] == [0, 0], "weights are freed after the step"
    splits = registry().get("schedule", schedule).splits_backward
    _, _, _, decisions = ranks[0]["default recomputation"]
    assert (("actor.archon.ac_mode", "full") in decisions) == splits
    assert any(option == "actor.mb_spec.n_mbs" for option, _ in ranks[0]["plain"][3])


@pytest.mark.wide
def test_data_ranks_reduce_what_pipeline_ranks_add_up():
    expected = alone(**TIED)
    ranks = run_world(run_all_options, 4, ("d2p2", "ZBV"), time_limit=120)
    for name in options_of("ZBV"):
        assert_equal([of_rank[name] for of_rank in ranks], expected)


def test_muon_moves_the_matrices_of_every_stage_as_one_process_does():
    options = {"optimizer": "muon", "layers": 2, **TIED}
    assert_equal(run_world(run, 4, ("p2t2", options)), alone(**options))


# Types: what is computed in bfloat16 is summed in float32, over micro-batches too.


def gradients_in_bfloat16(layout, schedule):
    engine = make_engine(layout, pp_schedule=schedule, dtype="bfloat16", n_mbs=8)
    engine.train_batch(share(engine, (5,) * 8, 0), NegativeLogLikelihood())
    return {name: gradient for name, (gradient, _) in gradients_and_weights(engine).items()}


def test_split_backward_passes_are_summed_in_the_type_of_reductions():
    expected = gradients_in_bfloat16("d1", "1F1B")
    for found in run_world(gradients_in_bfloat16, 2, ("p2", "IZB")):
        for name, gradient in found.items():
            torch.testing.assert_close(
                gradient, expected[name], rtol=0, atol=1e-6 * float(expected[name].abs().max()), msg=name
            )


# Connections: NCCL makes them when two ranks first talk in a group, and both must be there. Gloo is made to, here.


def connect_late():
    store, met, operations = dist.distributed_c10d._get_default_store(), set(), (dist.isend, dist.irecv)

    def meet(operation, tensor, peer, group):
        pair = f"{group.group_name}: {sorted((dist.get_rank(), peer))}"
        if pair not in met:
            store.set(f"{pair} {dist.get_rank()}", "")
            store.wait([f"{pair} {peer}"], timedelta(seconds=20))
            met.add(pair)
        return operation(tensor, peer, group=group)

    dist.isend, dist.irecv = (
        lambda tensor, peer, group, operation=operation: meet(operation, tensor, peer, group)
        for operation in operations
    )
    dist.send = lambda tensor, peer, group: dist.isend(tensor, peer, group=group).wait()
    dist.recv = lambda tensor, peer, group: dist.irecv(tensor, peer, group=group).wait()


def train_with_late_connections(layout, schedule):
    connect_late()
    return train(make_engine(layout, pp_schedule=schedule, **TIED))


@pytest.mark.parametrize(
    ("layout", "schedule"), [pytest.param("p3", "1F1B", marks=pytest.mark.wide), ("p3", "IZB"), ("p2", "ZBV")]
)
def test_ranks_connect_in_an_order_in_which_none_waits_for_ever(layout, schedule):
    expected = alone(**TIED)[0]
    for told in run_world(train_with_late_connections, world_size(layout), (layout, schedule)):
        assert told == pytest.approx(expected, rel=CLOSE)


# Moves: checkpoints know neither stages nor schedules.


def continue_training(layout, options, folder, source, target, step):
    engine = make_engine(layout, **options)
    if source:
        engine.load(folder / source, "dcp")
    told = train(engine, [step])
    engine.save(folder / target, "dcp")
    engine.save(folder / f"{target}-hf", "hf")
    return told, gradients_and_weights(engine), stages_here(engine)


def stages_here(engine):
    return [sorted(int(name) for name in stage.layers) for stage in stages_of(engine.module)]


@pytest.mark.wide
@pytest.mark.parametrize("changes", [pytest.param({}, id="untied"), pytest.param(TIED["changes"], id="tied")])
def test_a_run_moves_between_numbers_of_stages_and_schedules(tmp_path, changes):
    options = {"layers": 8, "changes": changes}
    engine = make_engine("d1", **options)
    expected = [(train(engine, [step]), gradients_and_weights(engine)) for step in range(4)]
    moves = [("p4", "I1F1B"), ("p2", "ZBV"), ("d2p2", "1F1B"), ("d1", "1F1B")]
    placed = []
    for step, (layout, schedule) in enumerate(moves):
        source = f"step-{step - 1}" if step else None
        arguments = (layout, {**options, "pp_schedule": schedule}, tmp_path, source, f"step-{step}", step)
        ranks = run_world(continue_training, world_size(layout), arguments, time_limit=120)
        assert_equal(ranks, expected[step])
        placed.append([here for _, _, here in ranks])
        model = AutoModelForCausalLM.from_pretrained(tmp_path / f"step-{step}-hf", dtype=torch.float64)
        torch.testing.assert_close(
            model.get_output_embeddings().weight,
            expected[step][1]["embed.weight" if changes else "head.weight"][1],
            rtol=0,
            atol=CLOSE,
            check_device=False,
        )
    interleaved, v, _, single = placed
    assert [len(stages) for stages in interleaved] == [2, 2, 2, 2]
    assert v[0][0] + v[1][0] + v[1][1] + v[0][1] == list(range(8)), "down and up again"
    assert single == [[list(range(8))]]


# Generation: the local engine samples through the stages.


def spelled(ids):
    return " ".join(map(str, ids))


def generate(layout, schedule, layers):
    engine = make_engine(layout, layers=layers, pp_schedule=schedule)
    train(engine, [0])
    rollout = LocalEngine(RolloutConfig(max_batch_size=3), trainer=engine)
    config = GenerationConfig(
        n_samples=2, max_new_tokens=7, stop_token_ids=[3, 40, 90], stop=["7", "5 1"], frequency_penalty=0.5
    )
    prompts = [(3, 5, 8, 1), (7,), (100, 2, 2, 9, 11, 4), (1, 2)]
    requests = [GenerationRequest(prompt, config, (2 * i, 2 * i + 1), spelled) for i, prompt in enumerate(prompts)]
    ranks = engine.data_ranks
    places = range(ranks.rank, len(requests), ranks.size)
    gathered = ranks.gather(dict(zip(places, rollout.generate([requests[i] for i in places]), strict=True)))
    after = train(engine, [2])
    return [part[i] for i in range(len(requests)) for part in gathered if i in part], after


@pytest.mark.parametrize(
    ("layout", "schedule", "layers"), [("d2p2", "I1F1B", 2), ("p2t2", "1F1B", 2), ("c2p2", "ZBV", 4)]
)
def test_stages_generate_what_one_process_does(layout, schedule, layers):
    expected, after = generate("d1", "1F1B", layers)
    for completions, afterwards in run_world(generate, world_size(layout), (layout, schedule, layers)):
        for found, wanted in zip(chain(*completions), chain(*expected), strict=True):
            assert found.token_ids == wanted.token_ids
            assert found.logprobs == pytest.approx(wanted.logprobs, abs=CLOSE)
        assert afterwards == pytest.approx(after, rel=CLOSE)


def record_the_second_step():
    engine = make_engine("p2", pp_schedule="1F1B", pp_record_step=2)
    steps = [engine.train_batch(share(engine, LENGTHS[step], step), NegativeLogLikelihood()) for step in range(2)]
    return [stats.recordings for stats in steps]


def test_the_recorded_step_is_returned_on_the_first_pipeline_rank():
    (before, [recording]), elsewhere = run_world(record_the_second_step, 2)
    assert recording.file == "pipeline-actor.json"
    assert parse_recording(recording.text, source=recording.file).step == 2
    assert (before, elsewhere) == ((), [(), ()])


# What goes wrong.


def hand_different_micro_batches_to_the_runner():
    engine = make_engine("p2", pp_schedule="1F1B")
    running = engine._running
    batch = share(engine, LENGTHS[0], 0)
    messages = []
    for change in ({"n_mbs": 2 + 2 * dist.get_rank()}, {"max_tokens_per_mb": 9 + 4 * dist.get_rank()}):
        split = dataclasses.replace(running.split, spec=MicroBatchSpec(**change))
        plan = split.plan(batch)
        micro_batches = split.build(batch, plan, OutputRequest(), len(plan))
        with pytest.raises(TrainingError) as refused:
            list(running.runner.forward(micro_batches))
        messages.append(str(refused.value))
    return messages, train(engine)


def test_ranks_that_expect_different_messages_are_told_before_the_first_one():
    expected = alone()[0]
    for messages, told in run_world(hand_different_micro_batches_to_the_runner, 2):
        for message in messages:
            assert "found ranks that expect different messages" in message
            assert "pipeline rank 0: n_micro_batches=" in message
            assert "pipeline rank 1: n_micro_batches=" in message
        assert told == pytest.approx(expected, rel=CLOSE), "and training can go on"


def another_order_on_every_rank(n_ranks, n_stages, n_micro_batches):
    numbers = range(n_micro_batches) if dist.get_rank() == 0 else reversed(range(n_micro_batches))
    order = [(kind, number) for number in numbers for kind in (ActionKind.FORWARD, ActionKind.BACKWARD)]
    return tuple(tuple(Action(rank, kind, number) for kind, number in order) for rank in range(n_ranks))


def halves_that_the_spec_denies(n_ranks, n_stages, n_micro_batches):
    kinds = (ActionKind.FORWARD, ActionKind.BACKWARD_INPUT, ActionKind.BACKWARD_WEIGHT)
    order = [(kind, number) for kind in kinds for number in range(n_micro_batches)]
    return tuple(tuple(Action(rank, kind, number) for kind, number in order) for rank in range(n_ranks))


def train_by_schedules_with_faults():
    messages = []
    for function in (another_order_on_every_rank, halves_that_the_spec_denies):
        name = function.__name__
        specs = types.ModuleType(f"{name}_module")
        setattr(specs, name, function)
        sys.modules[specs.__name__] = specs
        registry().add(ScheduleSpec(name=name, target=f"{specs.__name__}:{name}"))
        with pytest.raises((TrainingError, PluginError)) as refused:
            train(make_engine("p2", pp_schedule=name), [0])
        messages.append(str(refused.value))
    return messages


def test_schedules_that_would_mix_up_messages_or_halves_are_refused_before_the_first_one():
    for mixed, halved in run_world(train_by_schedules_with_faults, 2):
        assert "found ranks that expect different messages" in mixed
        assert "and equal action lists on all ranks" in mixed
        assert "found 0W0, half of a backward pass; its ScheduleSpec allows whole ones" in halved


def hand_on_something_else():
    engine = make_engine("p2", pp_schedule="1F1B")
    stage = stages_of(engine.module)[0]
    if stage.head is None:
        stage.register_forward_hook(lambda module, args, output: output[:, :-1])
    train(engine, [0])


def test_a_stage_that_hands_on_something_else_is_named():
    with pytest.raises(WorldError) as ended:
        run_world(hand_on_something_else, 2)
    message = "pipeline: found [17, 31] torch.float64 for stage 1; allowed is [17, 32] torch.float64"
    assert f"rank 0 failed first: archon_core.errors.TrainingError: {message}" in str(ended.value)


def go_on_after_an_abort():
    engine = make_engine("p2", pp_schedule="1F1B")
    runner = engine._running.runner
    run_action = runner._train_action

    def out_of_memory(action, *arguments):
        if action.micro_batch == 1:
            raise MemoryError
        run_action(action, *arguments)

    runner._train_action = out_of_memory
    with pytest.raises(MemoryError):
        train(engine, [0])
    runner._train_action = run_action
    with pytest.raises(TrainingError) as refused:
        train(engine, [0])
    return str(refused.value)


def test_after_an_aborted_step_the_next_one_is_refused_instead_of_waiting_for_ever():
    for message in run_world(go_on_after_an_abort, 2):
        assert "found an earlier step that was aborted" in message
