"""Runs of a trainer on the stand-in engines of ``bigram_engine``, and on the servers of ``bigram_serving``."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from rich.console import Console

from archon_core.config.loading import to_yaml
from archon_core.plugins import AlgorithmSpec, InferenceEngineSpec, TrainEngineSpec, registry
from archon_core.ranks.ranks import Ranks
from archon_core.ranks.role_link import RoleLink, ending
from archon_core.ranks.role_ranks import ACTOR
from archon_rl.trainer import sampling_ahead
from archon_rl.trainer.sampling_ahead import SampleAhead
from archon_train.cli.role_process import end_roles
from archon_train.experiment import load_config
from archon_train.run.context import RunContext
from archon_train.run.folder import RunFolder
from archon_train.run.interrupt import StopSignal
from archon_train.run.metrics import MetricsLog
from archon_train.run.progress import Progress

# A spec's target is imported by name, and files of a tests folder are no modules otherwise.
sys.path.insert(0, str(Path(__file__).parent))

from bigram_serving import BigramServing, Faults, ThreadLink
from thread_ranks import run_on_ranks, run_on_roles

NONE: Mapping = MappingProxyType({})

CONFIGURATION = """
experiment_name: test
trial_name: trial
algorithm: grpo
reward: arithmetic
rewards: {processes: 0}
cluster: {n_gpus_per_node: 1, fileroot: ROOT}
tokenizer: {kind: characters}
data: {dataset: arithmetic, batch_size: 4, validation_size: 10, arithmetic: {max_operand: 4}}
actor:
  backend: bigram:d1
  model_config: {model_type: qwen3}
  ppo_n_minibatches: 1
  kl_ctl: 0.0
  optimizer: {lr: 0.05}
rollout: {backend: bigram_rollout}
gconfig: {n_samples: 4, max_new_tokens: 3}
trainer: {max_steps: 6, save_every: 3, eval_every: 2}
"""


class Runner:
    """Starts runs in a folder of the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notes: list[str] = []
        self.trainer = None
        self.context = None

    def folder(self, trial: str = "trial") -> RunFolder:
        return RunFolder(self.root / "test" / trial)

    def config(self, *overrides: str, text: str = CONFIGURATION):
        file = self.root / "config.yaml"
        file.write_text(text.replace("ROOT", str(self.root)), encoding="utf-8")
        return load_config(file, overrides).config

    def other_rank(self, rank: int, trial: str = "trial") -> RunFolder:
        """Where the metrics of a rank other than the first are: a run has none, tests compare them."""
        return RunFolder(self.root / f"rank_{rank}" / trial)

    def __call__(
        self,
        *overrides: str,
        stop_after: int | None = None,
        stopped_rank: int = 0,
        ranks: int = 1,
        separated: Mapping[str, int] = NONE,
        text: str = CONFIGURATION,
    ) -> RunFolder:
        """One run to its end, or to a request to stop after a step, which ``stopped_rank`` alone hears. Each role in
        ``separated`` has its own ranks, of this number."""
        if ranks > 1:
            overrides = (f"cluster.n_gpus_per_node={ranks}", *overrides)
        config = self.config(*overrides, text=text)
        folder = RunFolder.open(
            config.cluster.fileroot, config.experiment_name, config.trial_name, resume=config.trainer.resume
        )
        resume_step = folder.latest_step() if config.trainer.resume else None

        def fit(here: Ranks, role: str = ACTOR, links: Mapping[str, RoleLink] = NONE) -> None:
            stop, decisions = StopSignal(), []
            is_first = here.is_first and role == ACTOR
            with (folder.path / "output.txt").open("a", encoding="utf-8") if is_first else io.StringIO() as output:
                last = stop_after if here.rank == stopped_rank else None
                progress = _StoppingProgress(Console(file=output), stop, last)
                trial = config.trial_name if role == ACTOR else f"{config.trial_name}-{role}"
                rows = folder if is_first else self.other_rank(here.rank, trial)
                rows.path.mkdir(parents=True, exist_ok=True)
                with MetricsLog(rows, resume_step=resume_step) as metrics:
                    context = RunContext(
                        config, folder, metrics, progress, stop, decisions, ranks=here, role=role, links=links
                    )
                    spec = registry().get(AlgorithmSpec, config.algorithm)
                    trainer = spec.load_trainer()(context, spec.load())
                    if is_first:
                        self.context, self.trainer = context, trainer
                    if role != ACTOR:
                        trainer.fit()
                        return
                    with ending(links):
                        try:
                            trainer.fit()
                        except KeyboardInterrupt:
                            end_roles(links, stop.exit_code)
                            raise
                        end_roles(links, 0)

        if separated:
            run_on_roles({ACTOR: ranks, **separated}, fit)
        elif ranks == 1:
            fit(Ranks())
        else:
            run_on_ranks(ranks, fit)
        return folder


class _StoppingProgress(Progress):
    def __init__(self, console: Console, stop: StopSignal, stop_after: int | None) -> None:
        super().__init__(console)
        self._stop, self._stop_after = stop, stop_after

    def update(self, step: int, **values) -> None:
        super().update(step, **values)
        if step == self._stop_after:
            self._stop.request()


@pytest.fixture
def run(tmp_path):
    specs = (
        TrainEngineSpec(name="bigram", target="bigram_engine:BigramEngine", letters="dt", axes="dt", hybrid=False),
        InferenceEngineSpec(name="bigram_rollout", target="bigram_engine:BigramRollout", letters=""),
        InferenceEngineSpec(
            name="bigram_servers",
            target="bigram_engine:BigramRollout",
            letters="dt",
            scorer="bigram_engine:BigramScorer",
        ),
    )
    for spec in specs:
        registry().add(spec)
    yield Runner(tmp_path)
    for spec in specs:
        registry().remove(spec.kind, spec.name)


@pytest.fixture
def collected(run, monkeypatch):
    """Runs on servers, and the numbers that each of their steps consumed."""
    spec = InferenceEngineSpec(
        name="bigram_collected", target="bigram_serving:BigramServing", letters="d", runs_servers=True
    )
    registry().add(spec)
    monkeypatch.setattr(sampling_ahead, "CollectorLink", ThreadLink)
    monkeypatch.setattr(ThreadLink, "faults", Faults())
    monkeypatch.setattr(BigramServing, "outages", ())
    opened = RunFolder.open

    def open_folder(*place, resume):
        folder = opened(*place, resume=resume)
        config = run.config(*run.given)
        folder.config.write_text(to_yaml(config), encoding="utf-8")
        return folder

    monkeypatch.setattr(RunFolder, "open", open_folder)
    steps: dict[int, list[int]] = {}
    collect = SampleAhead._collected

    def note(self, batch, *facts):
        steps[batch.step] = list(batch.settled)
        return collect(self, batch, *facts)

    monkeypatch.setattr(SampleAhead, "_collected", note)

    def start(*overrides, **options):
        ranks = options.get("ranks", 1)
        run.given = overrides if ranks == 1 else (f"cluster.n_gpus_per_node={ranks}", *overrides)
        return run(*overrides, **options)

    start.steps = steps
    yield start
    registry().remove(spec.kind, spec.name)
