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
from archon_core.contracts.engine_config import ROLES, EngineConfig
from archon_core.contracts.rollout import GenerationConfig, RolloutConfig

if TYPE_CHECKING:
    from archon_core.plugins import Registry


@dataclass
class ClusterConfig:
    """The machines.

    Attributes:
        n_nodes: machines.
        n_gpus_per_node: accelerators per machine, or processes per machine on CPU. Together they bound the sum
            of the engines' world sizes.
        fileroot: folder under which run folders are made: ``<fileroot>/<experiment_name>/<trial_name>``.
    """

    n_nodes: int = option(1, POSITIVE)
    n_gpus_per_node: int = option(8, POSITIVE)
    fileroot: str = option("runs", path_or_id)


@dataclass
class SchedulerConfig:
    """How processes are started.

    Attributes:
        type: ``local``, or a launcher that a plugin brings (``ray``, ``slurm``).
    """

    type: str = "local"


@dataclass
class TokenizerConfig:
    """The tokenizer, when it does not come with the checkpoint.

    Attributes:
        kind: ``pretrained`` reads ``tokenizer_path`` or ``actor.path``; ``characters`` has one token per character
            that the data contains, held-out records included; ``bpe`` is trained on the same text.
        vocab_size: size of a ``bpe`` vocabulary.
    """

    kind: str = option("pretrained", one_of("pretrained", "characters", "bpe"))
    vocab_size: int = option(4096, POSITIVE)


@dataclass
class DataConfig:
    """The data set.

    Attributes:
        dataset: name of a dataset plugin: ``jsonl``, ``hf``, ``arithmetic``, ...
        path: file, folder or hub id for the datasets that read one.
        validation_path: the same for the held-out split; null takes ``validation_size`` records off ``path``.
        validation_size: held-out records.
        prompt_key: field of the prompt: text, a number, or a list of messages with ``role`` and ``content``. Dots lead
            into nested objects, as in ``extra_info.question``.
        answer_key: field of the answer, in the same way; null when records have none.
        batch_size: records per training step.
        max_length: longer sequences are left out (SFT) or records with longer prompts are (RL); null for no limit.
        overlong: what happens to records that the run could not take in some step, because model, ``gconfig`` or
            ``mb_spec`` allow no sequence of that length: ``error`` refuses them before the first step, ``drop`` leaves
            them out as a recorded decision.
        shuffle: a new order each epoch, from the seed.
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
    """The length of a run and what it writes.

    Attributes:
        max_steps: optimizer steps; null for ``max_epochs`` epochs.
        max_epochs: passes over the training data when ``max_steps`` is null.
        save_every: steps between checkpoints; 0 writes only the last.
        async_save: write checkpoints while training goes on, from a copy of the state on the host.
        keep_last: how many of the last checkpoints are kept; null keeps all.
        keep_every: with ``keep_last``, checkpoints of steps that this divides are kept as well.
        eval_every: steps between evaluations on held-out data; 0 for none but the last.
        eval_size: most held-out records per evaluation; null for all.
        resume: continue from the run folder's last checkpoint; an error when there is none.
        auto_resume: the same when there is one, and start anew when there is none.
        max_restarts: how often the ranks are started again from the last checkpoint after one of them died. Mistakes
            in the configuration or the data are never tried again.
        accept_changed: what may have changed since the checkpoint that a resumed run goes on from: ``data``,
            ``validation``, ``tokenizer``, ``chat_template``, ``reward``. A change that is not listed is an error.
        verify_export: after the run, load the exported checkpoint with transformers and compare logits.
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
    """A whole run: the top level of a YAML file.

    Attributes:
        experiment_name: groups runs.
        trial_name: names this one.
        seed: every random draw is derived from it.
        algorithm: name of the algorithm: ``sft``, ``grpo``, ...
        reward: name of the reward function, for algorithms that use one.
        tokenizer_path: folder or hub id of the tokenizer; null takes ``actor.path``.
        cluster: the machines.
        scheduler: how processes are started.
        tokenizer: the tokenizer, when it is built from the data.
        actor: the model in training.
        critic: its value model, for algorithms that use one.
        ref: a fixed model to stay close to.
        teacher: a fixed model to learn from.
        rollout: where completions come from.
        gconfig: sampling options.
        data: the data set.
        trainer: the length of the run and what it writes.
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
