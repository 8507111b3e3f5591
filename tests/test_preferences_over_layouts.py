"""Losses over pairs, and whole runs of ``dpo`` and ``rw``, have the numbers of one process on every layout in float64.

A loss of a pair enters these tests by its entry in ``PAIR_LOSSES``.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from archon_core import assemble, parse_layout, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.spec import load_target
from archon_core.plugins import AlgorithmSpec
from archon_core.ranks.ranks import Ranks
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_rl.losses.preference import (
    PAIR_LOSSES,
    PAIRS,
    REFERENCE,
    BradleyTerryLoss,
    PreferenceLoss,
    sequence_logprobs,
)
from archon_rl.trainer.sharing import SharedEngine
from archon_testing.worlds import run_world
from archon_train.experiment import load_config
from archon_train.run.context import RunContext
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import StopSignal
from archon_train.run.metrics import MetricsLog, NoMetrics, read_metrics
from archon_train.run.progress import NoProgress, Progress

TOLERANCE = 1e-9
LENGTHS = (6, 3, 9, 4, 8, 2, 7, 5, 12, 10)
PROMPTS = (2, 2, 4, 4, 5, 1, 2, 2, 3, 3)
CASES = [
    pytest.param(layout, critic, marks=[] if (layout, critic) == ("c2", False) else [pytest.mark.wide])
    for layout in ("d2", "t2", "c2", "p2")
    for critic in (False, True)
]
"""Layout, and whether the model has a value head."""


def losses(*, critic: bool) -> dict[str, PreferenceLoss | BradleyTerryLoss]:
    if critic:
        return {"bradley-terry": BradleyTerryLoss()}
    return {
        f"{kind} {average}": PreferenceLoss(kind, 0.3, average) for kind in PAIR_LOSSES for average in (True, False)
    }


def make_engine(layout: str, *, critic: bool) -> SharedEngine:
    model = {**load_target(registry().get("model", "qwen3").tiny_config)(), "num_hidden_layers": 2}
    config = ArchonEngineConfig(
        model_config=model,
        is_critic=critic,
        dtype="float64",
        optimizer=OptimizerConfig(lr=0.0, weight_decay=0.0),
        mb_spec=MicroBatchSpec(n_mbs=2, granularity=2),
        archon=ArchonOptions(enable_compile=False),
    )
    engine = assemble(config, role="actor", layout=parse_layout(f"archon:{layout}"), seed=3, total_steps=None)
    engine.initialize()
    return SharedEngine(engine, 2)


def make_batch(engine: SharedEngine, *, critic: bool) -> Batch:
    generator = torch.Generator().manual_seed(5)
    masks = [
        (torch.arange(n) >= prompt - 1) & (torch.arange(n) < n - 1) for n, prompt in zip(LENGTHS, PROMPTS, strict=True)
    ]
    ids = torch.randint(0, 100, (sum(LENGTHS),), generator=generator)
    pairs = torch.arange(len(LENGTHS) // 2).repeat_interleave(2)
    batch = Batch(ids, LENGTHS, {"loss_mask": torch.cat(masks)}, {PAIRS: pairs})
    if critic:
        return batch
    reference = sequence_logprobs(engine.forward_batch(batch, OutputRequest())["logprobs"], batch)
    noise = torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)
    return batch.with_fields(sequence_fields={REFERENCE: reference + noise})


def numbers(layout: str, critic: bool) -> dict[str, tuple[float, float, dict[str, float], dict[str, torch.Tensor]]]:
    """Per loss: its value, the gradient norm, the metrics, and the gradients of this rank's parameters. The learning
    rate is 0, so all losses see the same weights."""
    engine = make_engine(layout, critic=critic)
    batch = make_batch(engine, critic=critic)
    found = {}
    for name, loss in losses(critic=critic).items():
        stats = engine.train_batch(batch, loss)
        gradients = {parameter: whole(p.grad) for parameter, p in engine.engine.parameters.items()}
        found[name] = (stats.loss, stats.gradient_norm, dict(stats.metrics), gradients)
    return found


def whole(gradient: torch.Tensor) -> torch.Tensor:
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "critic"), CASES)
def test_every_loss_over_pairs_has_the_numbers_of_one_process(layout, critic):
    expected = numbers("d1", critic)
    ranks = run_world(numbers, 2, (layout, critic), time_limit=300)
    for name, (loss, norm, metrics, gradients) in expected.items():
        assert 0 < metrics["accuracy"] < 1
        least = 1e-6 * max(float(g.abs().max()) for g in gradients.values())
        assert set().union(*(found[name][3] for found in ranks)) == set(gradients)
        for found in ranks:
            other_loss, other_norm, other_metrics, other_gradients = found[name]
            assert other_loss == pytest.approx(loss, rel=TOLERANCE, abs=TOLERANCE), name
            assert other_norm == pytest.approx(norm, rel=TOLERANCE), name
            assert other_metrics == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE), name
            for parameter, gradient in other_gradients.items():
                scale = max(float(gradients[parameter].abs().max()), least)
                difference = float((gradient - gradients[parameter]).abs().max())
                assert difference <= TOLERANCE * scale, f"{name}: {parameter}"


RUN = """
experiment_name: pairs
tokenizer: {kind: characters}
actor:
  dtype: float64
  model_config:
    {model_type: qwen3, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 4,
     num_key_value_heads: 2, head_dim: 8, tie_word_embeddings: true}
  mb_spec: {n_mbs: 2, granularity: 2}
  optimizer: {lr: 0.01}
  archon: {enable_compile: false}
data: {dataset: jsonl, path: ROOT/pairs.jsonl, prompt_key: prompt, batch_size: 3, validation_size: 4}
trainer: {max_steps: 4, save_every: 2, eval_every: 2, verify_export: true}
cluster: {fileroot: ROOT}
"""


def train(file: Path, algorithm: str, layout: str, trial: str, overrides: tuple[str, ...] = ()) -> None:
    """A run on this world's ranks."""
    ranks = Ranks.of_process_group()
    given = [f"algorithm={algorithm}", f"trial_name={trial}", f"actor.backend=archon:{layout}"]
    config = load_config(file, [*given, f"cluster.n_gpus_per_node={ranks.size}", *overrides]).config
    place = (config.cluster.fileroot, config.experiment_name, config.trial_name)
    folder = RunFolder.at(*place)
    with ExitStack() as stack:
        metrics, progress = NoMetrics(), NoProgress()
        if ranks.is_first:
            RunFolder.open(*place, resume=config.trainer.resume)
            output = stack.enter_context((folder.path / "output.txt").open("a"))
            metrics = stack.enter_context(MetricsLog(folder, resume_step=folder.latest_step()))
            progress = Progress(Console(file=output))
        spec = registry().get(AlgorithmSpec, algorithm)
        run = RunContext(config, folder, metrics, progress, StopSignal(), [], ranks=ranks)
        spec.load_trainer()(run, spec.load()).fit()


def rows(folder: Path) -> list[dict[str, float]]:
    of_a_step = ("time/", "memory/", "tokens_per_second")
    measured = (*of_a_step, *(f"warm_start/{name}" for name in of_a_step))
    return [
        {name: value for name, value in row.items() if not name.startswith(measured)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module", params=["dpo", "rw"])
def alone(request, tmp_path_factory):
    """The algorithm, the configuration file and the folder of a run in one process."""
    root = tmp_path_factory.mktemp(request.param)
    lines = [
        f'{{"prompt": "{a}+{b}=", "chosen": "{a + b}", "rejected": "{a * b + 1}7"}}' for a in range(4) for b in range(4)
    ]
    (root / "pairs.jsonl").write_text("\n".join(lines))
    file = root / "config.yaml"
    warm_start = "warm_start: {steps: 2}\n" if request.param == "dpo" else ""
    file.write_text(RUN.replace("ROOT", str(root)) + warm_start)
    run_world(train, 1, (file, request.param, "d1", "alone"), time_limit=120)
    return request.param, file, root / "pairs" / "alone"


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["d2", "c2", "t2", "p2"])
def test_a_run_on_two_ranks_gives_the_numbers_of_one_process(alone, layout):
    algorithm, file, expected = alone
    run_world(train, 2, (file, algorithm, layout, layout), time_limit=120)
    assert_equal_runs(expected.parent / layout, expected)


@pytest.mark.wide
@pytest.mark.slow
def test_a_run_goes_on_on_another_layout_with_the_same_numbers(alone):
    algorithm, file, expected = alone
    run_world(train, 2, (file, algorithm, "c2", "parts", ("trainer.max_steps=2",)), time_limit=120)
    run_world(train, 2, (file, algorithm, "d2", "parts", ("trainer.resume=true",)), time_limit=120)
    found, others = load_file(expected.parent / "parts" / "export" / "model.safetensors"), expected / "export"
    for name, weight in load_file(others / "model.safetensors").items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=TOLERANCE * float(weight.abs().max()))


POLICY = """
experiment_name: pairs
reward: model
reward_model: {path: EXPORT, dtype: float64, archon: {enable_compile: false}}
tokenizer_path: EXPORT
actor:
  dtype: float64
  kl_ctl: 0.0
  model_config:
    {model_type: qwen3, hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 4,
     num_key_value_heads: 2, head_dim: 8, tie_word_embeddings: true}
  optimizer: {lr: 0.01}
  archon: {enable_compile: false}
data: {dataset: arithmetic, batch_size: 3, validation_size: 3, arithmetic: {max_operand: 3}}
rollout: {backend: local}
gconfig: {n_samples: 3, max_new_tokens: 3}
trainer: {max_steps: 2, verify_export: true}
cluster: {fileroot: ROOT}
"""


@pytest.mark.wide
@pytest.mark.slow
@pytest.mark.parametrize("alone", ["rw"], indirect=True)
def test_a_reward_model_scores_alike_on_every_layout(alone):
    _, pairs, trained = alone
    file = pairs.parent / "policy.yaml"
    file.write_text(POLICY.replace("EXPORT", str(trained / "export")).replace("ROOT", str(pairs.parent)))
    run_world(train, 1, (file, "grpo", "d1", "policy"), time_limit=120)
    expected = trained.parent / "policy"
    assert any(row.get("reward_std", 0) > 0 for row in rows(expected))
    for layout, model in (("d2", ""), ("t2", "archon:d2")):
        run_world(train, 2, (file, "grpo", layout, f"policy_{layout}", (f"reward_model.backend={model}",)))
        assert_equal_runs(trained.parent / f"policy_{layout}", expected)


def assert_equal_runs(found: Path, expected: Path) -> None:
    for row, other in zip(rows(found), rows(expected), strict=True):
        assert row == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    weights, others = (load_file(folder / "export" / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], rtol=0, atol=TOLERANCE * float(others[name].abs().max()))
    assert "Export verified" in (found / "output.txt").read_text()
