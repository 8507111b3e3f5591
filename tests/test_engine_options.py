"""Options of the engine change speed and memory, never the numbers: recomputation, compilation, offloading, resharding.

Every mode of one layout runs in one world, and is compared with the same layout without the option; ``archon verify``
compares layouts with each other.
"""

import dataclasses

import pytest
import torch
from torch.distributed.tensor import DTensor

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepRecording
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.contracts.spec import load_target
from archon_core.errors import TrainingError
from archon_engine.optimizer import muon
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_testing.compiling import compile_without_code
from archon_testing.losses import NegativeLogLikelihood
from archon_testing.worlds import run_world

VOCABULARY = 128
CLOSE = 1e-9
"""Compiled float64 differs by roundings only: products are fused with what follows."""

MODES = {
    "none": {},
    "selective": {"ac_mode": "selective"},
    "every second": {"ac_mode": "selective", "selective_ac_option": "2"},
    "full": {"ac_mode": "full"},
}


def world_size(layout):
    return parse_layout(f"archon:{layout}").world_size


QWEN3 = {"num_hidden_layers": 2}
HYBRID = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
"""A layer with Gated DeltaNet and one with gated attention."""


def make_engine(
    layout, *, model="qwen3", n_mbs=1, optimizer="adamw", dtype="float64", lr=1e-2, effective=None, **options
):
    tiny = load_target(registry().get("model", model).tiny_config)()
    sizes = QWEN3 if model == "qwen3" else HYBRID
    engine = assemble(
        ArchonEngineConfig(
            model_config={**tiny, **sizes, "initializer_range": 0.3},
            dtype=dtype,
            gradient_checkpointing="ac_mode" in options,
            mb_spec=MicroBatchSpec(n_mbs=n_mbs),
            optimizer=OptimizerConfig(type=optimizer, lr=lr),
            archon=ArchonOptions(**{"enable_compile": False, **options}),
        ),
        role="actor",
        layout=parse_layout(f"archon:{layout}"),
        seed=5,
        total_steps=None,
        explicit=frozenset(f"actor.archon.{name}" for name in options),
    )
    engine._effective = dataclasses.replace(engine.effective, **(effective or {}))
    engine.initialize()
    return engine


def share(engine, seed, lengths=(4, 9, 1, 6, 3, 2)):
    generator = torch.Generator().manual_seed(seed)
    batch = Batch.from_sequences([torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths])
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def own(tensor):
    """This rank's part, as it is now."""
    tensor = tensor.detach()
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).clone()


def run(engine, *, n_steps=2, between=lambda step: None, loss=None):
    """Loss, norm and this rank's gradients of each step, and its weights in the end."""
    steps = []
    for step in range(n_steps):
        stats = engine.train_batch(share(engine, step), loss or NegativeLogLikelihood())
        steps += [torch.tensor([stats.loss, stats.gradient_norm])]
        steps += [own(parameter.grad) for parameter in engine.parameters.values()]
        between(step)
    return steps + [own(parameter) for parameter in engine.parameters.values()]


def worst(found, expected):
    """The largest difference, each tensor's in units of its own largest value."""
    return max(
        float((a - b).abs().max() / max(float(b.abs().max()), 1e-6))
        for a, b in zip(found, expected, strict=True)
        if a.numel()
    )


def is_equal(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def recompute_in_all_modes(layout):
    """Per mode: whether numbers equal those without it, what was kept, and the operations that ran again."""
    expected, names, told = None, None, {}
    for mode, options in MODES.items():
        engine = make_engine(layout, n_mbs=2, ac_debug=True, **options)
        found = run(engine)
        expected = expected or found
        names = names or list(engine.parameters)
        assert list(engine.parameters) == names
        blocks = engine.recomputation.blocks.values()
        kept = sum(block.kept.bytes for block in blocks)
        told[mode] = is_equal(found, expected), kept, [dict(block.recomputed.operations) for block in blocks]
        engine.close()
    return told


EXPENSIVE = {"mm", "_scaled_dot_product_flash_attention_for_cpu"}
COLLECTIVES = {"all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"}


@pytest.mark.parametrize("layout", ["d1", "d2", pytest.param("c2t2", marks=pytest.mark.wide)])
def test_recomputation_changes_no_bit_of_any_gradient_and_keeps_less(layout):
    for told in run_world(recompute_in_all_modes, world_size(layout), (layout,)):
        assert all(equal for equal, _, _ in told.values())
        kept = {mode: n_bytes for mode, (_, n_bytes, _) in told.items()}
        assert kept["full"] < kept["selective"]
        assert kept["full"] < kept["none"]
        if layout != "c2t2":
            # Tensor ranks keep partial sums of the whole width, so with few features per rank selective saves nothing.
            assert kept["selective"] < kept["none"]
        assert kept["full"] < kept["every second"] < kept["none"]
        again = {mode: operations for mode, (_, _, operations) in told.items()}
        assert again["none"] == [{}, {}]
        for operations in again["selective"]:
            assert operations["silu"] == 1
            assert not operations.keys() & (EXPENSIVE | COLLECTIVES)
        first, second = again["every second"]
        assert not first
        expected = EXPENSIVE | (COLLECTIVES if layout == "c2t2" else set())
        for operations in (second, *again["full"]):
            assert expected <= operations.keys()


def graphs():
    """Graphs that dynamo has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def lengths_of(step):
    return tuple(torch.randint(2, 12, (4 + step % 3,), generator=torch.Generator().manual_seed(step)).tolist())


def compile_and_compare(layout, folder, options, backend, model="qwen3"):
    """The largest difference to eager runs, graphs, and how many batches of other lengths and generation have added."""
    if backend != "inductor":
        compile_without_code(backend)
    plain, engine = (make_engine(layout, model=model, **more) for more in ({}, {"enable_compile": True, **options}))
    assert engine.effective.compile
    difference = worst(run(engine), run(plain))
    engine.forward_batch(share(engine, 2, (3, 5, 4, 7)), OutputRequest())
    n_graphs = graphs()
    for step in range(6):
        engine.train_batch(share(engine, step, lengths_of(step)), NegativeLogLikelihood())
        engine.forward_batch(share(engine, step, lengths_of(step + 1)), OutputRequest())
    with engine.generating(), torch.no_grad():
        # One token, as in decoding, would need a graph of its own.
        packed = PackedSequences.from_lengths((1,), head=HeadInputs(("logits",)))
        assert engine.module(torch.arange(1), packed)["logits"].shape == (1, VOCABULARY)
    added = graphs() - n_graphs

    if engine.recomputation is not None:
        again = [graph.operations.keys() for graph in engine.recomputation.graphs]
        assert any("exp" in operations for operations in again)
        assert not any(operations & (EXPENSIVE | COLLECTIVES) for operations in again)

    assert list(engine.parameters) == list(plain.parameters)
    engine.save(folder / "dcp", "dcp")
    plain.load(folder / "dcp", "dcp")
    assert is_equal(map(own, plain.parameters.values()), map(own, engine.parameters.values()))
    engine.save(folder / "compiled", "hf")
    plain.save(folder / "plain", "hf")
    return difference, n_graphs, added


@pytest.mark.parametrize(
    ("layout", "options", "backend", "model"),
    [
        pytest.param(
            "d1",
            {"ac_mode": "memory_budget", "ac_memory_budget": 0.5},
            "aot_eager_decomp_partition",
            "qwen3",
            marks=pytest.mark.wide,
        ),
        pytest.param("t2", {"ac_mode": "selective", "ac_debug": True}, "inductor", "qwen3", marks=pytest.mark.wide),
        pytest.param("c2", {"ac_mode": "full"}, "aot_eager", "qwen3_5", marks=pytest.mark.wide),
    ],
    ids=lambda value: value if isinstance(value, str) else value["ac_mode"],
)
def test_compiled_blocks_give_equal_numbers_names_and_exports_and_share_graphs(
    layout, options, backend, model, tmp_path
):
    arguments = (layout, tmp_path, options, backend, model)
    results = run_world(compile_and_compare, world_size(layout), arguments, time_limit=240)
    for difference, n_graphs, added in results:
        assert difference < CLOSE
        assert n_graphs > 0
        assert added == 0
    exports = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("compiled", "plain")]
    assert exports[0] == exports[1]


class Looking(NegativeLogLikelihood):
    """Notes which parts have whole weights when the forward pass is over."""

    def __init__(self, engine):
        self.engine = engine
        self.seen = set()

    def __call__(self, outputs, micro_batch):
        module = self.engine.module
        parts = {"embed": module.embed, "block": module.layers["0"].mlp.up_proj, "head": module.head}
        self.seen |= {name for name, part in parts.items() if not isinstance(part.weight, DTensor)}
        return super().__call__(outputs, micro_batch)


def reshard_in_all_policies():
    told, expected = {}, None
    for policy in ("default", "always", "never"):
        engine = make_engine("d2", reshard_after_forward_policy=policy)
        loss = Looking(engine)
        found = run(engine, loss=loss)
        expected = expected or found
        told[policy] = is_equal(found, expected), loss.seen
    return told


def test_whole_weights_are_kept_between_forward_and_backward_as_the_policy_says():
    for told in run_world(reshard_in_all_policies, 2):
        assert told == {
            "default": (True, {"head"}),
            "always": (True, set()),
            "never": (True, {"embed", "block", "head"}),
        }


def offload_between_steps(layout, optimizer):
    expected = run(make_engine(layout, optimizer=optimizer), n_steps=3)
    engine = make_engine(layout, optimizer=optimizer)

    def away_and_back(step):
        engine.offload()
        engine.offload()
        assert all(parameter.grad is None for parameter in engine.module.parameters())
        # On a CPU nothing moves: give every weight another place, as another device would.
        engine.module._apply(torch.clone)
        for state in engine._running.optimizer.states():
            state.update({key: value.clone() for key, value in state.items()})
        batch = share(engine, 0)
        for use in (
            lambda: engine.train_batch(batch, NegativeLogLikelihood()),
            lambda: engine.eval_batch(batch, NegativeLogLikelihood()),
            lambda: engine.forward_batch(batch, OutputRequest()),
            lambda: engine.generating().__enter__(),
            lambda: engine.save("nowhere", "hf"),
            lambda: engine.load("nowhere", "dcp"),
        ):
            with pytest.raises(TrainingError, match=r"engine 'actor': found it offloaded .* call onload\(\)"):
                use()
        engine.onload()
        engine.onload()

    names, objects = list(engine.parameters), [id(parameter) for parameter in engine.parameters.values()]
    found = run(engine, n_steps=3, between=away_and_back)
    assert list(engine.parameters) == names
    assert [id(parameter) for parameter in engine.parameters.values()] == objects
    return is_equal(found, expected)


@pytest.mark.parametrize(("layout", "optimizer"), [("d1", "adamw"), ("d2", "muon"), ("d3", "adamw")])
def test_an_engine_that_was_offloaded_goes_on_with_the_same_numbers(layout, optimizer):
    assert all(run_world(offload_between_steps, world_size(layout), (layout, optimizer)))


def keep_parameters_on_the_host(layout):
    expected = run(make_engine(layout, optimizer="muon"))
    # What a CUDA device would get: on a CPU the option is a recorded decision.
    engine = make_engine(layout, optimizer="muon", effective={"offload_params": True})
    return is_equal(run(engine), expected)


@pytest.mark.parametrize("layout", ["d1", "d2"])
def test_offloaded_parameters_give_the_same_numbers(layout):
    assert all(run_world(keep_parameters_on_the_host, world_size(layout), (layout,)))


def test_muon_knows_the_type_of_the_passes(monkeypatch):
    """On a GPU it iterates in bf16 for 16-bit passes only."""
    types, real = [], muon.orthogonalise_all
    monkeypatch.setattr(muon, "orthogonalise_all", lambda *given: types.append(given[2]) or real(*given))
    for dtype in ("float32", "bfloat16"):
        engine = make_engine("d1", optimizer="muon", dtype=dtype)
        engine.train_batch(share(engine, 1), NegativeLogLikelihood())
    assert types == [torch.float32, torch.bfloat16]


def test_offloading_parameters_on_a_cpu_is_a_recorded_decision():
    engine = make_engine("d1", offload_params=True)
    [decision] = [d for d in engine.decisions if d.option == "actor.archon.offload_params"]
    assert (decision.requested, decision.effective) == ("true", "false")
    assert is_equal(run(engine), run(make_engine("d1")))


def test_an_update_that_is_too_small_for_bf16_is_not_lost():
    learning_rate = 1e-5  # of weights near 1; bf16 numbers there are 0.004 or 0.008 apart
    moved = {}
    for master in (None, "bfloat16"):
        engine = make_engine("d1", dtype="bfloat16", optimizer="adam", lr=learning_rate, master_dtype=master)
        norm = engine.parameters["norm.weight"]
        before = own(norm).float()
        for step in range(8):
            engine.train_batch(share(engine, step), NegativeLogLikelihood())
        moved[norm.dtype] = (own(norm).float() - before).abs()
    assert moved[torch.bfloat16].max() == 0
    # Adam's first steps are of the size of the rate, whatever the gradient.
    assert moved[torch.float32].max() > 4 * learning_rate
    assert (moved[torch.float32] > 0).all()


def test_the_first_step_returns_the_report_of_recomputation_and_later_ones_do_not():
    engine = make_engine("d1", ac_mode="full", ac_debug=True)
    first, second = (engine.train_batch(share(engine, step), NegativeLogLikelihood()) for step in range(2))
    [recording] = first.recordings
    assert recording == StepRecording("ac_debug-rank0.txt", f"actor: {engine.recomputation.report()}", is_log=True)
    assert second.recordings == ()
