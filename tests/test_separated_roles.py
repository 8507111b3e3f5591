"""Critic, reference and teacher on their own ranks train with the numbers of one process, in float64.

The separated roles have other sizes and other layouts than the actor. ``alone`` runs everything in one process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from archon_core.run_files.trajectories import read_step, steps_in
from archon_rl.trainer import collector_link
from archon_rollout.served import launching
from archon_testing.worlds import run_world
from archon_train.run.metrics import read_metrics

sys.path.insert(0, str(Path(__file__).parent))

from archon_testing.fork_server import ForkServer, install
from separated_runs import train
from traces import assert_within, ranges_of

TOLERANCE = 1e-9
MODEL = """
    model_type: qwen3
    vocab_size: 64
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 4
    num_key_value_heads: 2
    head_dim: 8
    max_position_embeddings: 64
    initializer_range: 0.3
"""
CONFIG = f"""
experiment_name: roles
seed: 5
reward: own_reward:score
cluster: {{fileroot: ROOT, n_gpus_per_node: 2}}
tokenizer: {{kind: characters}}
data: {{dataset: arithmetic, batch_size: 4, arithmetic: {{max_operand: 3}}}}
actor:
  backend: archon:d1
  dtype: float64
  model_config: {MODEL}
  ppo_n_minibatches: 2
  kl_ctl: 0.1
  optimizer: {{type: sgd, lr: 0.1}}
  archon: {{enable_compile: false}}
ref: {{dtype: float64, archon: {{enable_compile: false}}}}
gconfig: {{n_samples: 2, max_new_tokens: 5}}
rewards: {{processes: 0}}
rollout: {{backend: local}}
trainer: {{max_steps: 3, eval_every: 0, eval_before_train: false, save_every: 0}}
"""
PPO = """
algorithm: ppo
critic: {dtype: float64, ppo_n_minibatches: 2, optimizer: {lr: 0.01}, archon: {enable_compile: false}}
"""
DISTILLATION = """
algorithm: grpo
teacher:
  engine_type: train
  path: TEACHER
  dtype: float64
  distill_loss_weight: 0.5
  archon: {enable_compile: false}
"""
SECTIONS = {"ppo": PPO, "distillation": DISTILLATION}
REWARD = """
def score(prompt, completion, record):
    return sum(map(ord, completion)) % 97 / 97
"""
SEPARATE = {role: f"{role}.scheduling_strategy.type=separation" for role in ("critic", "ref", "teacher")}


def apart(**layouts: str) -> tuple[str, ...]:
    """The options of roles on their own ranks."""
    return tuple(
        option for role, layout in layouts.items() for option in (SEPARATE[role], f"{role}.backend=archon:{layout}")
    )


def on_ranks_of(role: str, target: str, layout: str) -> tuple[str, ...]:
    """The options of a role that shares the ranks of another one."""
    strategy = f"{role}.scheduling_strategy"
    return f"{strategy}.type=colocation", f"{strategy}.target={target}", f"{role}.backend=archon:{layout}"


def rows(run: Path) -> list[dict[str, float]]:
    """The metrics of the training steps, without times and memory."""
    found = [row for row in read_metrics(run / "metrics.jsonl") if "reward" in row]
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith(("time", "memory")) and "per_second" not in name and name != "profiled"
        }
        for row in found
    ]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the actor, and of the critic if there is one."""
    exports = sorted(run.glob("export*/model.safetensors"))
    return {f"{file.parent.name}: {name}": w for file in exports for name, w in load_file(file).items()}


def assert_equal(found: Path, expected: Path, n_steps: int = 3) -> None:
    assert len(rows(found)) == len(rows(expected)) == n_steps
    for ours, theirs in zip(rows(found), rows(expected), strict=True):
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert_equal_weights(found, expected)


def assert_equal_weights(found: Path, expected: Path) -> None:
    assert weights(found).keys() == weights(expected).keys()
    for place, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[place], tensor, rtol=0, atol=TOLERANCE, msg=place)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("roles")
    (folder / "own_reward.py").write_text(REWARD, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def write_file(root: Path, name: str) -> Path:
    file = root / f"{name}.yaml"
    sections = SECTIONS[name].replace("TEACHER", str(root / "roles/ppo-alone/export"))
    file.write_text(CONFIG.replace("ROOT", str(root)) + sections, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def alone(root: Path) -> Callable[[str], Path]:
    """The run of an algorithm in one process; each runs once."""

    def run(name: str) -> Path:
        folder = root / "roles" / f"{name}-alone"
        if not folder.exists():
            run_world(train, 1, (write_file(root, name), folder.name, ()))
        return folder

    return run


def test_a_critic_on_a_rank_of_its_own_trains_with_the_numbers_of_one_process(root, alone) -> None:
    run = root / "roles/apart"
    run_world(train, 2, (write_file(root, "ppo"), run.name, (*apart(critic="d1"), "profiler.trace_steps=[2]")))
    assert_equal(run, alone("ppo"))
    actor, critic = (ranges_of(run / f"profile/step-000002/rank-{rank}.trace.json.gz") for rank in range(2))
    assert_within(actor, "step 2", "actor train_batch", "rollout", "critic")
    assert_within(critic, "step 2", "critic train_batch", "critic forward_batch", "optimizer")


PPO_LAYOUTS = {
    "actor d2, critic t2": (4, ("actor.backend=archon:d2", *apart(critic="t2"))),
    "actor t2, critic d1, ref d1": (4, ("actor.backend=archon:t2", *apart(critic="d1", ref="d1"))),
    "actor d1, critic c2 with ref p2": (3, (*apart(critic="c2"), *on_ranks_of("ref", "critic", "p2"))),
}


@pytest.mark.wide
@pytest.mark.parametrize("name", PPO_LAYOUTS)
def test_ppo_has_the_numbers_of_one_process(root: Path, alone: Callable[[str], Path], name: str) -> None:
    n_ranks, options = PPO_LAYOUTS[name]
    trial = name.replace(" ", "-").replace(",", "")
    run_world(train, n_ranks, (write_file(root, "ppo"), trial, (*options, "enable_offload=true")))
    assert_equal(root / "roles" / trial, alone("ppo"))


@pytest.mark.wide
def test_a_teacher_has_the_numbers_of_one_process(root: Path, alone: Callable[[str], Path]) -> None:
    alone("ppo")  # the teacher
    run_world(train, 3, (write_file(root, "distillation"), "taught", apart(teacher="t2")))
    assert_equal(root / "roles/taught", alone("distillation"))


@pytest.mark.wide
def test_a_resumed_run_may_move_its_critic(root: Path, alone: Callable[[str], Path]) -> None:
    file, resumed = write_file(root, "ppo"), ("trainer.resume=true",)
    run_world(train, 3, (file, "parts", (*apart(critic="d2"), "trainer.async_save=true", "trainer.save_every=1"), 1))
    assert len(rows(root / "roles/parts")) == 1
    run_world(train, 3, (file, "parts", ("actor.backend=archon:d2", *apart(critic="d1"), *resumed), 2))
    run_world(train, 1, (file, "parts", resumed))
    assert_equal(root / "roles/parts", alone("ppo"))


SERVED = (
    "rollout.backend=served:d1",
    "rollout.setup_timeout=120",
    "rollout.health_check_timeout_seconds=30",
    "cluster.n_gpus_per_node=3",
)


def train_collected(file: Path, trial: str, overrides: tuple[str, ...], fork_server_address: str) -> None:
    """A run on this world's ranks; its server and its collector are forks of a process that has imported everything."""
    install(ForkServer(address=fork_server_address), collector_link, launching)
    train(file, trial, overrides)


@pytest.mark.wide
def test_with_a_collector_in_step_the_numbers_are_those_of_one_process(
    root: Path, alone: Callable[[str], Path], fork_server_address: str
) -> None:
    options = (*apart(critic="d1"), *SERVED)
    arguments = (write_file(root, "ppo"), "collected", options, fork_server_address)
    run_world(train_collected, 2, arguments, time_limit=300)
    found, expected = root / "roles/collected", alone("ppo")
    assert len(rows(found)) == 3
    for ours, theirs in zip(rows(found), rows(expected), strict=True):
        assert ours["staleness_max"] == 0
        shared = ours.keys() & theirs.keys()
        assert {"loss", "reward", "gradient_norm", "critic/loss", "critic/explained_variance"} <= shared
        assert {name: ours[name] for name in shared} == pytest.approx(
            {name: theirs[name] for name in shared}, rel=TOLERANCE, abs=TOLERANCE
        )
    assert_equal_weights(found, expected)


@pytest.mark.wide
def test_a_critic_trains_on_what_a_collector_samples_ahead(root: Path, fork_server_address: str) -> None:
    ahead = ("rollout.max_head_offpolicyness=1", "rollout.dump_to_file=true", "trainer.max_steps=5")
    options = (*apart(critic="d1"), *SERVED, *ahead)
    arguments = (write_file(root, "ppo"), "ahead", options, fork_server_address)
    run_world(train_collected, 2, arguments, time_limit=300)
    folder = root / "roles/ahead"
    consumed = [line for _, file in sorted(steps_in(folder).items()) for line in read_step(file)]
    assert [line.group for line in consumed] == [group for group in range(20) for _ in range(2)], "each record once"
    for line in consumed:
        # A step updates the weights twice, once per mini-batch; those before it and before the last step are allowed.
        assert {*line.weights} <= {2 * (line.step - 1), 2 * (line.step - 2)}
    assert max(row["staleness_max"] for row in rows(folder)) == 1, "it samples ahead"
    assert [row["version"] for row in rows(folder)] == [2, 4, 6, 8, 10]
    for row in rows(folder):
        assert row["critic/updates"] == 2
        assert row["critic/gradient_norm"] > 1e-3
