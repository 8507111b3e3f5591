"""The schema of a run: the top level of the YAML files that ``archon train`` reads.

Plugins add their options with ``ConfigSection``. Every field has a default, so that a file names only what it changes.
A docstring's ``Attributes`` entry is the option's documentation: the reference page is made from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from archon_core.config.loading import LoadedConfig, read_config
from archon_core.config.root import RootSchema
from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, each_one_of, folder_name, one_of, option, path_or_id
from archon_core.contracts.engine_config import EngineConfig
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass
class ClusterConfig:
    """Number of machines and ranks, and the place of run folders.

    Attributes:
        n_nodes: number of machines.
        n_gpus_per_node: accelerators per machine, or processes per machine on CPUs. ``n_nodes`` x ``n_gpus_per_node``
            is the maximum of the engines' world sizes together.
        fileroot: folder for run folders, which are ``<fileroot>/<experiment_name>/<trial_name>``.
    """

    n_nodes: int = option(1, POSITIVE)
    n_gpus_per_node: int = option(8, POSITIVE)
    fileroot: str = option("runs", path_or_id)


@dataclass
class SchedulerConfig:
    """The launcher of the run's processes.

    Attributes:
        type: ``local``, or a launcher of a plugin (``ray``, ``slurm``).
    """

    type: str = "local"


@dataclass
class TokenizerConfig:
    """The tokenizer, if it does not come with the checkpoint.

    Attributes:
        kind: ``pretrained`` reads ``tokenizer_path`` or ``actor.path``. ``characters`` has one token per character of
            the data, held-out records included. ``bpe`` is trained on the same text.
        vocab_size: vocabulary size of ``bpe``.
    """

    kind: str = option("pretrained", one_of("pretrained", "characters", "bpe"))
    vocab_size: int = option(4096, POSITIVE)


@dataclass
class DataConfig:
    """The data set.

    Attributes:
        dataset: name of the data set: ``jsonl``, ``hf``, ``arithmetic``, or one of a plugin.
        path: file, folder or hub id, for data sets that read one.
        validation_path: file, folder or hub id of held-out records; null takes ``validation_size`` records from
            ``path``.
        validation_size: number of held-out records.
        prompt_key: field of the prompt: text, a number, or a list of messages with ``role`` and ``content``. Dots lead
            into nested objects, as in ``extra_info.question``.
        answer_key: field of the answer, in the same form; null if records have none.
        batch_size: records per training step.
        max_length: leave out longer sequences (SFT) or records with longer prompts (RL); null for no limit.
        overlong: records that exceed what model, ``gconfig`` or ``mb_spec`` allow in some step: ``error`` refuses them
            before the first step, ``drop`` leaves them out as a recorded decision.
        shuffle: draw a new order for each epoch, from the seed.
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
    """Length of the run, checkpoints and evaluation.

    Attributes:
        max_steps: number of optimizer steps; null runs ``max_epochs`` epochs.
        max_epochs: number of passes over the training data, if ``max_steps`` is null.
        save_every: steps between checkpoints; 0 writes only one at the end.
        async_save: write checkpoints in the background, from a copy of the state in host memory.
        keep_last: number of latest checkpoints to keep; null keeps all.
        keep_every: with ``keep_last``, also keep the checkpoint of every step divisible by this.
        eval_every: steps between evaluations on held-out records; 0 evaluates only at the end.
        eval_size: maximum number of held-out records per evaluation; null for all.
        resume: continue from the run folder's last checkpoint; an error if there is none.
        auto_resume: continue from the run folder's last checkpoint if there is one; otherwise start over.
        max_restarts: how often to restart all ranks from the last checkpoint after a rank died. Mistakes in the
            configuration or the data never restart.
        accept_changed: changes that a resumed run accepts since its checkpoint: ``data``, ``validation``,
            ``tokenizer``, ``chat_template``, ``reward``. Any other change is an error.
        verify_export: after the run, load the export with transformers and compare logits.
    """

    max_steps: int | None = option(None, POSITIVE)
    max_epochs: int = option(1, POSITIVE)
    save_every: int = option(0, NOT_NEGATIVE)
    async_save: bool = False
    keep_last: int | None = option(None, POSITIVE, fix="null keeps all checkpoints")
    keep_every: int | None = option(None, POSITIVE)
    eval_every: int = option(0, NOT_NEGATIVE)
    eval_size: int | None = option(None, POSITIVE)
    resume: bool = False
    auto_resume: bool = False
    max_restarts: int = option(0, NOT_NEGATIVE)
    accept_changed: list[str] = field(
        default_factory=list,
        metadata={"rule": each_one_of("data", "validation", "tokenizer", "chat_template", "reward"), "fix": ""},
    )
    verify_export: bool = False

    def problems(self) -> Iterator[tuple[str, str]]:
        """Options that do not go together."""
        if self.keep_every is not None and self.keep_last is None:
            yield (
                "keep_every",
                f"found {self.keep_every} without trainer.keep_last, which keeps all checkpoints; set keep_last, or "
                "leave keep_every out",
            )


@dataclass
class ExperimentConfig:
    """The top level of a run's YAML file.

    Attributes:
        experiment_name: first part of the run folder's name; groups runs.
        trial_name: second part of the run folder's name; names this run.
        seed: seed of every random draw.
        algorithm: training algorithm: ``sft``, ``grpo``, or one of a plugin.
        reward: reward function, for algorithms that use one.
        tokenizer_path: folder or hub id of the tokenizer; null uses ``actor.path``.
        cluster: the machines.
        scheduler: the launcher.
        tokenizer: the tokenizer, if it is built from the data.
        actor: the model in training.
        critic: the value model, for algorithms that use one.
        ref: a fixed reference model, for a KL penalty.
        teacher: a fixed model to learn from.
        rollout: the inference engine.
        gconfig: sampling options.
        data: the data set.
        trainer: length of the run, checkpoints and evaluation.
    """

    experiment_name: str = option("archon", folder_name)
    trial_name: str = option("trial0", folder_name)
    seed: int = 1
    algorithm: str = "grpo"
    reward: str | None = None
    tokenizer_path: str | None = option(None, path_or_id)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    actor: EngineConfig = field(default_factory=lambda: EngineConfig(backend="archon:d1"))
    critic: EngineConfig | None = None
    ref: EngineConfig | None = None
    teacher: EngineConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    gconfig: GenerationConfig = field(default_factory=GenerationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


ROLES = ("actor", "critic", "ref", "teacher")
"""The sections that describe models."""

SELECTORS: dict[str, tuple[str, ...]] = {
    "algorithm": ("algorithm",),
    "reward": ("reward",),
    "dataset": ("data.dataset",),
    "launcher": ("scheduler.type",),
    "inference_engine": ("rollout.backend",),
    "train_engine": tuple(f"{role}.backend" for role in ROLES),
}
"""Kind of spec -> the options that name one, beside those by which engines name models, schedules and experts."""

ROOT = RootSchema(ExperimentConfig, SELECTORS)
"""The shape of a run's configuration file."""


def load_config(
    path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None, *, allow_missing: bool = False
) -> LoadedConfig:
    """Read a run's YAML file and apply dotted overrides; see ``archon_train.experiment.load_config``."""
    return read_config(path, overrides, root=ROOT, registry=registry, allow_missing=allow_missing)
