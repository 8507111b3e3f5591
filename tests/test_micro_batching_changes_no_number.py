"""Loss, every gradient, the norm and the weights after steps do not depend on how a batch is split, packed or padded,
on one process and on many.

The oracle is the same batch in one micro-batch without padding, in float64, where rounding cannot hide a bug.
"""

from dataclasses import replace

import pytest
import torch

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.spec import load_target
from archon_core.ranks.ranks import Ranks
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.parallel.shards import local_part
from archon_testing.worlds import run_world

TOLERANCE = 1e-9
N_STEPS = 3


class ThreeUnits:
    """Uses every unit and both outputs of a language model."""

    request = OutputRequest(names=("logprobs", "entropy"), temperature=0.8)

    def weights(self, batch):
        mask = batch.token_fields["mask"]
        return {"token": mask.sum(), "sequence": float(len(batch)), "constant": 7.0 * len(batch)}

    def __call__(self, outputs, micro_batch):
        masked = outputs["logprobs"] * micro_batch.token_fields["mask"]
        per_sequence = micro_batch.sum_per_sequence(masked * micro_batch.token_fields["advantage"])
        return LossSums(
            terms={
                "token": -masked.sum(),
                "sequence": (per_sequence * micro_batch.sequence_fields["scale"]).sum(),
                "constant": -0.1 * outputs["entropy"].sum(),
            },
            metrics={"entropy": ("token", outputs["entropy"].detach().sum())},
        )


class ValueRegression:
    request = OutputRequest(names=("values",))

    def weights(self, batch):
        return {"token": batch.token_fields["mask"].sum()}

    def __call__(self, outputs, micro_batch):
        error = (outputs["values"] - micro_batch.token_fields["advantage"]) * micro_batch.token_fields["mask"]
        return LossSums(terms={"token": error.square().sum()})


def make_batch(vocab_size):
    generator = torch.Generator().manual_seed(5)
    lengths = [1, 17, 4, 1, 9, 23, 2, 6]
    rows = [torch.randint(0, vocab_size, (length,), generator=generator) for length in lengths]
    masks = [torch.ones(length, dtype=torch.float64) for length in lengths]
    for mask in masks:
        mask[-1] = 0
    advantages = [torch.randn(length, dtype=torch.float64, generator=generator) for length in lengths]
    scale = torch.randn(len(lengths), dtype=torch.float64, generator=generator)
    return Batch.from_sequences(rows, {"mask": masks, "advantage": advantages}, {"scale": scale})


def run(family, *, critic, layout="d1", n_layers=4, **options):
    """Per step: loss, norm, gradients and weights; and the forward outputs of this rank's share before the first."""
    model_config = {**load_target(registry().get("model", family).tiny_config)(), "num_hidden_layers": n_layers}
    config = ArchonEngineConfig(
        model_config=model_config,
        is_critic=critic,
        dtype="float64",
        optimizer=OptimizerConfig(lr=1e-2, weight_decay=0.1, gradient_clipping=0.5),
        archon=ArchonOptions(enable_compile=False),
    )
    config = replace(config, **options)
    layout = parse_layout(f"archon:{layout}")
    engine = assemble(config, role="actor", layout=layout, seed=3, total_steps=N_STEPS)
    engine.initialize()
    batch, ranks = make_batch(model_config["vocab_size"]), engine.data_ranks
    batch = batch.select(share_of(ranks.rank, ranks.size, len(batch)))
    loss = ValueRegression() if critic else ThreeUnits()
    outputs = engine.forward_batch(batch, loss.request)
    evaluation = engine.eval_batch(batch, loss)
    steps = []
    for _ in range(N_STEPS):
        stats = engine.train_batch(batch, loss)
        gradients = {name: part_of(p.grad) for name, p in engine.parameters.items()}
        weights = {name: part_of(p) for name, p in engine.parameters.items()}
        steps.append((stats, gradients, weights))
    assert evaluation.loss == pytest.approx(steps[0][0].loss, rel=TOLERANCE)
    return outputs, steps


def share_of(rank, n_ranks, n_sequences):
    """Neighbours, so that outputs of one share after the other are those of the whole batch."""
    return range(rank * n_sequences // n_ranks, (rank + 1) * n_sequences // n_ranks)


def part_of(tensor):
    """What this rank holds of it, and which box of the whole that is."""
    values, box = local_part(tensor)
    return values.clone(), box


def assert_close(actual, expected, scale):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().le(TOLERANCE * scale).all()


def magnitude(tensor):
    return float(tensor.abs().max())


def assert_same_numbers(actual, expected):
    for name, value in expected[0].items():
        assert_close(actual[0][name], value, magnitude(value))
    for (stats, gradients, weights), (want, want_gradients, want_weights) in zip(actual[1], expected[1], strict=True):
        assert stats.loss == pytest.approx(want.loss, rel=TOLERANCE)
        assert stats.gradient_norm == pytest.approx(want.gradient_norm, rel=TOLERANCE)
        for name, metric in want.metrics.items():
            assert stats.metrics[name] == pytest.approx(metric, rel=TOLERANCE)
        for found, wanted in ((gradients, want_gradients), (weights, want_weights)):
            # A tensor's error is measured against its own largest entry, or a millionth of the largest of all where
            # that is more: some true gradients are zero.
            least = 1e-6 * max(magnitude(tensor) for tensor, _ in wanted.values())
            for name, (tensor, _) in wanted.items():
                part, box = found[name]
                assert_close(part, tensor[box.slices], max(magnitude(tensor), least))


CASES = {
    "two micro-batches": {"mb_spec": MicroBatchSpec(n_mbs=2)},
    "four micro-batches": {"mb_spec": MicroBatchSpec(n_mbs=4)},
    "more micro-batches than sequences": {"mb_spec": MicroBatchSpec(n_mbs=11)},
    "evenest packing": {"mb_spec": MicroBatchSpec(n_mbs=3, packing_algorithm="kk")},
    "a token limit": {"mb_spec": MicroBatchSpec(max_tokens_per_mb=24)},
    "pairs kept together": {"mb_spec": MicroBatchSpec(n_mbs=2, granularity=2)},
    "padding to a multiple": {"mb_spec": MicroBatchSpec(n_mbs=2), "batch_align_to": 16},
    "padding to the maximum": {"mb_spec": MicroBatchSpec(max_tokens_per_mb=64), "pad_to_maximum": True},
    "padding joined with the layout's": {"batch_align_to": 6},
}


@pytest.fixture(scope="module", params=[("qwen2", False), ("qwen3", True)], ids=str)
def family(request):
    name, critic = request.param
    return name, critic, run(name, critic=critic)


@pytest.mark.parametrize("case", CASES)
def test_numbers_do_not_depend_on_the_split(family, case):
    name, critic, expected = family
    assert_same_numbers(run(name, critic=critic, **CASES[case]), expected)


OF_ONE_PROCESS = ("four micro-batches", "evenest packing", "pairs kept together")
"""Which sequences a micro-batch has is decided before ranks cut it, so one process shows these."""


def compare_all_cases(layout, reference):
    """The cases in which this rank finds another number in its share or its parts, with the first of them."""
    outputs, steps = torch.load(reference, weights_only=False)
    ranks = Ranks.of_process_group()
    dims = parse_layout(f"archon:{layout}").parallel_dims(moe=False)
    n_shares = dims.dp_replicate * dims.dp_shard
    offsets = make_batch(128).offsets
    own = share_of(ranks.rank * n_shares // ranks.size, n_shares, len(offsets) - 1)
    own_outputs = {name: value[offsets[own[0]] : offsets[own[-1] + 1]] for name, value in outputs.items()}
    different = {}
    for name, options in CASES.items():
        if name in OF_ONE_PROCESS:
            continue
        found = run("qwen3", critic=False, layout=layout, n_layers=2, **options)
        try:
            assert_same_numbers(found, (own_outputs, steps))
        except AssertionError as error:
            different[name] = str(error)
    return different


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["c2", *(pytest.param(wide, marks=pytest.mark.wide) for wide in ("c2t2", "r2c2"))])
def test_numbers_do_not_depend_on_the_split_on_ranks_that_share_sequences(layout, tmp_path):
    torch.save(run("qwen3", critic=False, n_layers=2), tmp_path / "reference")
    size = parse_layout(f"archon:{layout}").world_size
    assert run_world(compare_all_cases, size, (layout, tmp_path / "reference"), time_limit=300) == [{}] * size


def test_the_comparison_notices_a_micro_batch_that_is_left_out(family, monkeypatch):
    from archon_engine.step.sequential_runner import SequentialRunner

    name, critic, expected = family
    train = SequentialRunner.train
    monkeypatch.setattr(SequentialRunner, "train", lambda self, parts, objective: train(self, parts[:-1], objective))
    with pytest.raises(AssertionError):
        assert_same_numbers(run(name, critic=critic, mb_spec=MicroBatchSpec(n_mbs=4)), expected)


def test_the_comparison_notices_a_loss_normalised_per_micro_batch(family, monkeypatch):
    from archon_engine.step import step

    name, critic, expected = family

    class PerMicroBatch(step.LossTotals):
        def objective(self, outputs, micro_batch):
            self._weights = {unit: float(w) for unit, w in self._loss.weights(micro_batch.batch).items() if float(w)}
            return super().objective(outputs, micro_batch)

    monkeypatch.setattr(step, "LossTotals", PerMicroBatch)
    with pytest.raises(AssertionError):
        assert_same_numbers(run(name, critic=critic, mb_spec=MicroBatchSpec(n_mbs=2)), expected)
