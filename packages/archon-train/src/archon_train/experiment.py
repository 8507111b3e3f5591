"""The configuration schema of a run: the top level of the YAML files that ``archon train`` reads.

Plugins add options with ``ConfigSection``. Every field has a default, so a file contains only its changes. The
``Attributes`` entries of the docstrings document the options: the reference page is generated from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from archon_core.config.loading import LoadedConfig, read_config
from archon_core.config.root import RootSchema
from archon_core.config.rules import (
    NOT_NEGATIVE,
    POSITIVE,
    each_one_of,
    folder_name,
    number,
    one_of,
    option,
    path_or_id,
)
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig
from archon_core.contracts.server_registry import NameResolveConfig
from archon_train.profile_plan import ProfilerConfig, profile_problems

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass
class ClusterConfig:
    """The machines.

    Attributes:
        n_nodes: number of machines.
        n_gpus_per_node: accelerators per machine, or processes per machine on CPU. The product with ``n_nodes`` bounds
            the sum of the engines' world sizes. 0 runs on CPUs, also if the machine has GPUs, without that bound.
        fileroot: parent of run folders: ``<fileroot>/<experiment_name>/<trial_name>``.
        name_resolve: the registry of inference servers.
    """

    n_nodes: int = option(1, POSITIVE)
    n_gpus_per_node: int = option(8, NOT_NEGATIVE)
    fileroot: str = option("runs", path_or_id)
    name_resolve: NameResolveConfig = field(default_factory=NameResolveConfig)


@dataclass
class SchedulerConfig:
    """The launcher of a run's processes.

    Attributes:
        type: ``local``, or the name of a launcher plugin, such as ``slurm``; null for ``local``.
    """

    type: str | None = "local"

    def __post_init__(self) -> None:
        if self.type is None:
            self.type = "local"


@dataclass
class TokenizerConfig:
    """The tokenizer: read from a checkpoint, or built from the data.

    Attributes:
        kind: ``pretrained`` reads ``tokenizer_path`` or ``actor.path``; ``characters`` has one token per character
            in the data, including held-out records; ``bpe`` is trained on the same text.
        vocab_size: size of a ``bpe`` vocabulary.
    """

    kind: str = option("pretrained", one_of("pretrained", "characters", "bpe"))
    vocab_size: int = option(4096, POSITIVE)


@dataclass
class DataConfig:
    """The data set.

    Attributes:
        dataset: name of a dataset plugin: ``jsonl``, ``hf``, ``arithmetic``, ...
        path: file, folder or hub id, for data sets that read one.
        validation_path: file, folder or hub id of the held-out split; null holds out ``validation_size`` records of
            ``path``.
        validation_size: number of held-out records.
        prompt_key: field of the prompt: text, a number, or a list of messages with ``role`` and ``content``. Dots
            address nested objects, as in ``extra_info.question``.
        answer_key: field of the answer, likewise; null if records have no answer.
        batch_size: records per training step.
        max_length: leave out records with a longer sequence (SFT) or a longer prompt (RL), in tokens; null for no
            limit.
        overlong: what to do with records that are too long for the model, ``gconfig`` or ``mb_spec``: ``error`` stops
            before the first step, ``drop`` leaves them out and records a decision.
        shuffle: shuffle the records of each epoch, by the seed.
    """

    dataset: str = "jsonl"
    path: str | None = option(None, path_or_id)
    validation_path: str | None = option(None, path_or_id)
    validation_size: int = option(0, NOT_NEGATIVE)
    prompt_key: str = "question"
    answer_key: str | None = "answer"
    batch_size: int = option(32, POSITIVE)
    max_length: int | None = option(None, POSITIVE)
    overlong: str = option("error", one_of("error", "drop"))
    shuffle: bool = True


@dataclass
class TrainerConfig:
    """Length and output of a run.

    Attributes:
        max_steps: training steps; null for ``max_epochs`` epochs.
        max_epochs: passes over the training data if ``max_steps`` is null.
        save_every: steps between checkpoints; 0 writes only the last one.
        async_save: write checkpoints in the background, from a copy of the state on the host.
        keep_last: number of recent checkpoints to keep; null keeps all.
        keep_every: with ``keep_last``, also keep the checkpoints of steps that are multiples of this.
        eval_every: steps between evaluations on held-out data; 0 evaluates only at the end.
        eval_before_train: also evaluate before the first step. AReaL's default is false.
        eval_size: largest number of held-out records per evaluation; null for all.
        eval_pass_above: with several samples per held-out record (``eval_gconfig``), a sample passes if its reward is
            above this. Not in AReaL.
        resume: continue from the run folder's last checkpoint; an error if there is no such run.
        auto_resume: continue from the last checkpoint if there is one, otherwise start a new run.
        max_restarts: number of restarts from the last checkpoint after a rank died. Errors in the configuration or the
            data are not retried.
        accept_changed: inputs that may differ from those of the checkpoint of a resumed run: ``data``, ``validation``,
            ``tokenizer``, ``chat_template``, ``reward``, ``workflow``. Any other change is an error.
        verify_export: after the run, load the export with transformers and compare logits.
    """

    max_steps: int | None = option(None, POSITIVE)
    max_epochs: int = option(1, POSITIVE)
    save_every: int = option(0, NOT_NEGATIVE)
    async_save: bool = False
    keep_last: int | None = option(None, POSITIVE, fix="null keeps all checkpoints")
    keep_every: int | None = option(None, POSITIVE)
    eval_every: int = option(0, NOT_NEGATIVE)
    eval_before_train: bool = True
    eval_size: int | None = option(None, POSITIVE)
    eval_pass_above: float = option(0.0, number())
    resume: bool = False
    auto_resume: bool = False
    max_restarts: int = option(0, NOT_NEGATIVE)
    accept_changed: list[str] = field(
        default_factory=list,
        metadata={
            "rule": each_one_of("data", "validation", "tokenizer", "chat_template", "reward", "workflow"),
            "fix": "",
        },
    )
    verify_export: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Pairs of options that contradict each other."""
        if self.keep_every is not None and self.keep_last is None:
            yield (
                "keep_every",
                f"found {self.keep_every} without trainer.keep_last, which keeps all checkpoints; set "
                "trainer.keep_last, or leave trainer.keep_every out",
            )


@dataclass
class ExperimentConfig:
    """A whole run: the top level of a YAML file.

    Attributes:
        experiment_name: name of a group of runs.
        trial_name: name of this run.
        seed: seed of all random draws.
        algorithm: name of the algorithm: ``sft``, ``grpo``, ...
        reward: name of the reward function, for algorithms that use one; or ``module:function`` (``module.function``)
            in a Python file of the working directory or of a folder of ``PYTHONPATH``.
        workflow: how a record becomes completions to train on: the name of a workflow; or ``module:function``, as for
            ``reward``, of a function ``(config, parts)`` that returns one.
        dynamic_bs: train on fewer than ``data.batch_size`` prompts where ``actor.dynamic_sampling`` leaves some out,
            instead of drawing further prompts.
        enable_offload: keep the models beside the actor in host memory except while they work: critic, reference,
            teacher and reward model.
        tokenizer_path: folder or hub id of the tokenizer; null takes ``actor.path``.
        cluster: the machines.
        scheduler: the launcher.
        tokenizer: the tokenizer.
        actor: the trained model.
        critic: the value model, for algorithms that use one.
        ref: the frozen reference model of the KL terms.
        teacher: a frozen model to distil from.
        reward_model: a frozen model that scores completions, for ``reward: model``.
        rollout: the engine that samples completions.
        gconfig: sampling options.
        eval_gconfig: sampling options of evaluations; options left out have the defaults of this table, not the values
            of ``gconfig``. With several samples per record, evaluations report ``eval/reward_avg@k`` and
            ``eval/pass@k``. Null for one greedy completion per record, with the limits of ``gconfig``.
        data: the data set.
        trainer: length and output of the run.
        profiler: training steps to profile.
    """

    experiment_name: str = option("archon", folder_name)
    trial_name: str = option("trial0", folder_name)
    seed: int = 1
    algorithm: str = "grpo"
    reward: str | None = None
    workflow: str = "rlvr"
    dynamic_bs: bool = False
    enable_offload: bool = False
    tokenizer_path: str | None = option(None, path_or_id)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    actor: EngineConfig = field(default_factory=lambda: EngineConfig(backend="archon:d1"))
    critic: EngineConfig | None = None
    ref: EngineConfig | None = None
    teacher: EngineConfig | None = None
    reward_model: EngineConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    gconfig: GenerationConfig = field(default_factory=GenerationConfig)
    eval_gconfig: GenerationConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    profiler: ProfilerConfig = field(default_factory=ProfilerConfig)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options of several sections that contradict each other."""
        yield from profile_problems(self)


SELECTORS: dict[str, tuple[str, ...]] = {
    "algorithm": ("algorithm",),
    "reward": ("reward",),
    "workflow": ("workflow",),
    "dataset": ("data.dataset",),
    "launcher": ("scheduler.type",),
    "inference_engine": ("rollout.backend", "teacher.rollout.backend"),
    "server_driver": ("rollout.backend", "teacher.rollout.backend"),
    "server_registry": ("cluster.name_resolve.type",),
    "train_engine": tuple(f"{role}.backend" for role in ROLES),
}
"""Kind of spec -> the options that name one. Engines declare their options for models, schedules and experts."""

ROOT = RootSchema(ExperimentConfig, SELECTORS)
"""The root schema of a run's configuration file."""


def load_config(
    path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None, *, allow_missing: bool = False
) -> LoadedConfig:
    """Read a run's YAML file and apply dotted overrides; see ``archon_core.config.loading.read_config``."""
    return read_config(path, overrides, root=ROOT, registry=registry, allow_missing=allow_missing)
