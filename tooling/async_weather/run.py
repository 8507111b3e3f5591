"""One start of the run of a storm: ``archon train`` in a forked process that writes down what it consumes.

With several ranks, the launcher of ``archon train`` starts them as forks, too, each in ``async_weather.rank``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from archon_core.cli.main import main
from archon_rl.trainer import collector_link
from archon_rl.trainer.sampling_ahead import SampleAhead
from archon_rollout.served import launching
from archon_testing.fork_server import ForkServer, install
from archon_train.launch import local
from async_weather.options import RANK, AsyncStormOptions
from async_weather.reading import end_torn_line
from weather.records import Log

CONFIGURATION = """
experiment_name: storm
trial_name: run
algorithm: grpo
reward: storm_reward:score
seed: 3
cluster: {{n_gpus_per_node: 8, fileroot: .}}
tokenizer: {{kind: characters}}
data: {{dataset: arithmetic, batch_size: 3, validation_size: 4, arithmetic: {{max_operand: 4}}}}
actor:
  backend: archon:d{ranks}
  dtype: float64
  model_config:
    model_type: qwen3
    vocab_size: 64
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 8
    max_position_embeddings: 64
    initializer_range: 0.3
  ppo_n_minibatches: 2
  kl_ctl: 0.0
  dynamic_sampling: {dynamic_sampling}
  dynamic_sampling_max_rounds: 4
  optimizer: {{lr: 0.01}}
  archon: {{enable_compile: false}}
gconfig: {{n_samples: 2, max_new_tokens: 6}}
rewards: {{processes: 1, max_failed: 0.5}}
rollout:
  backend: served:d{servers}
  max_head_offpolicyness: {staleness}
  request_timeout: 60
  setup_timeout: 60
  weight_timeout: 20
  health_check_interval_seconds: 0.3
  health_check_timeout_seconds: 10
  health_check_failure_threshold: 2
  topology_change_cooldown_seconds: 0
trainer:
  max_steps: {steps}
  save_every: 2
  keep_last: 2
  auto_resume: true
  eval_every: 0
  eval_before_train: false
  verify_export: false
"""

REWARD = '''
def score(prompt, completion, record):
    """Depends on every token, so that groups of different completions have different rewards; fails for some."""
    if sum(map(ord, prompt)) % 5 == 0:
        raise ValueError("a record that cannot be scored")
    return sum(map(ord, completion)) % 7 / 7
'''


def write_files(folder: Path, options: AsyncStormOptions) -> None:
    """Write configuration and reward."""
    fields = {name: str(value).lower() for name, value in options.as_data().items()}
    (folder / "config.yaml").write_text(CONFIGURATION.format(**fields), encoding="utf-8")
    (folder / "storm_reward.py").write_text(REWARD, encoding="utf-8")


def train(folder: Path, ranks: int) -> None:
    """Train until the end of the run. Called in a forked process.

    Args:
        folder: of the storm.
        ranks: processes of the trainer; a single one is this process.
    """
    os.chdir(folder)
    end_torn_line(folder / "trainer.jsonl")
    log = Log(folder / "trainer.jsonl")
    log.write("start", pid=os.getpid())
    if ranks == 1:
        prepare_rank(folder, log)
    else:
        _fork_ranks(log)
    try:
        main(["train", "config.yaml"])
    except SystemExit as end:
        if end.code:
            raise


def prepare_rank(folder: Path, log: Log) -> None:
    """Let this process, which has one thread, start its programs as forks and write down what it consumes."""
    forks = ForkServer(lambda command, pid: log.write("process", what=_kind(command), pid=pid))
    install(forks, collector_link, launching)
    _record(SampleAhead, log, folder)


def _fork_ranks(log: Log) -> None:
    """Let the launcher start its ranks as forks."""
    forks = ForkServer()

    def popen(args: Sequence[str], *, env: Mapping[str, str], **options: Any) -> Any:
        command = [args[0], "-m", "async_weather.rank", *args[args.index("archon_core.cli") + 1 :]]
        process = forks.popen(command, env=env, **options)
        log.write("process", what=RANK, rank=int(env["RANK"]), pid=process.pid)
        return process

    local.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": popen})


def _kind(command: Sequence[str]) -> str:
    return "collector" if "-c" in command else "server"


def _record(ahead: type[SampleAhead], log: Log, folder: Path) -> None:
    """Let every trainer write down its publications, with their weights, and the groups that it consumes."""
    collected, published = ahead._collected, ahead.published

    def write_collected(self: Any, batch: Any, *facts: Any) -> Any:
        result = collected(self, batch, *facts)
        groups = [
            {
                "number": number,
                "reason": one.reason,
                "rewards": list(one.group.rewards),
                "trajectories": [
                    [list(t.token_ids), list(t.loss_mask), list(t.logprobs), list(t.versions)]
                    for t in one.group.trajectories
                ],
            }
            for number, one in batch.settled.items()
        ]
        numbers = {name: result.statistics[name] for name in ("staleness_max", "stale_prompts")}
        if self.run.ranks.is_first:
            log.write("step", step=batch.step, groups=groups, **numbers)
        return result

    def write_published(self: Any, step: int) -> None:
        trainer, version, ranks = self.rollout._trainer, self.rollout.version, self.run.ranks
        place, writing = folder / "weights" / f"v{version}", folder / "weights" / "writing"
        for old in (place, writing) if ranks.is_first else ():
            shutil.rmtree(old, ignore_errors=True)
        ranks.barrier()
        trainer.save(writing, "hf")
        ranks.barrier()
        if ranks.is_first:
            writing.rename(place)
            log.write("published", step=step, version=version)
        published(self, step)

    ahead._collected, ahead.published = write_collected, write_published
