"""Training engines: the spec, the protocol that trainers see, and the parts that an engine is assembled from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

from archon_core.contracts.spec import Spec
from archon_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, device

    from archon_core.contracts.adapters import AdapterSpec
    from archon_core.contracts.batch import Batch
    from archon_core.contracts.decisions import Decision
    from archon_core.contracts.loss import Loss, OutputRequest
    from archon_core.contracts.model import CausalModule, ModelSpec
    from archon_core.contracts.moe import MoESpec
    from archon_core.contracts.packed import OutputName
    from archon_core.contracts.pipeline import PipelineSpec, ScheduleSpec
    from archon_core.contracts.weight_transport import BucketMemory, WeightBucket
    from archon_core.layout import Layout
    from archon_core.ranks.ranks import DataRanks, Ranks
    from archon_core.serving.manifest import WeightManifest


@dataclass(frozen=True)
class TrainEngineSpec(Spec):
    """A training engine, named by the backend part of a layout. ``target`` names a ``TrainEngineFactory``.

    Attributes:
        letters: axis letters of layouts that the backend understands.
        hybrid: whether the backend understands ``(attn:...|ffn:...)``.
        axes: the letters that the engine runs with a size above 1; any other is an error.
        preview: target of ``preview(outline) -> EnginePreview``, which gives a dry run the problems and decisions of
            an engine (``EngineOutline``) before it starts. It must not import torch. Empty for no preview.
        model_type: target of ``model_type(config, *, role) -> str``, which returns the ``model_type`` of the model that
            an ``EngineConfig`` names. Empty for an engine that brings its models and receives no parts.
        model: name of the model spec that this engine always runs; empty to choose by model type.
        selectors: kind of spec -> the option, under the role's section, that names one, such as
            ``("schedule", "archon.pp_schedule")``.
    """

    kind: ClassVar[str] = "train_engine"
    hook: ClassVar[str] = "archon_train_engines"

    letters: str = "dtpcer"
    hybrid: bool = True
    axes: str = ""
    preview: str = ""
    model_type: str = ""
    model: str = ""
    selectors: tuple[tuple[str, str], ...] = ()

    def option(self, kind: str, role: str) -> str | None:
        """The dotted name of the option that names a spec of ``kind``; ``None`` when the engine has none."""
        name = dict(self.selectors).get(kind)
        return None if name is None else f"{role}.{name}"

    def asked(self, config: Any, kind: str) -> str | None:
        """The name of a ``kind`` that ``config``, a role's section, chooses; ``None`` when it chooses none."""
        value = config
        for key in dict(self.selectors).get(kind, "").split("."):
            value = getattr(value, key, None)
        return value

    def chosen_model(self, asked: str | None, *, option: str) -> str | None:
        """The model spec to run when ``asked`` is the name that the user wrote under ``option``, if any.

        Raises:
            ConfigError: the user chose another model than this engine runs.
        """
        if not self.model or asked in (None, self.model):
            return self.model or asked
        raise ConfigError(
            f"{option}: found {asked!r}; engine {self.name!r} runs model {self.model!r} for every model type; "
            f"leave {option} out, or use the prefix archon: instead of {self.name}:"
        )


@dataclass(frozen=True)
class StepRecording:
    """A recording of one step that an option enabled. A trainer passes it on to the run's recordings.

    Attributes:
        file: name of the file in the run folder, which the first rank writes.
        text: the file's content.
        is_log: whether ``text`` is shown to the user and appended to the file, instead of replacing it.
        series_step: for a file over steps, the optimizer step that ``text`` is the line of; such a file keeps a bounded
            number of steps, evenly spread. ``None`` for other files.
    """

    file: str
    text: str
    is_log: bool = False
    series_step: int | None = None


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, or one evaluation pass.

    Attributes:
        loss: the objective of the whole batch, summed over units.
        gradient_norm: global L2 norm before clipping; ``None`` in evaluation.
        learning_rate: learning rate of the step; ``None`` in evaluation.
        skipped: whether the update was skipped because the norm was not finite.
        n_micro_batches: number of micro-batches into which the batch was split.
        n_tokens: tokens in the batch, over all ranks.
        metrics: the loss's metrics, divided by their global weights.
        recordings: recordings of this step, most of which an option enabled.
        expert_load: layer index as text -> tokens of each expert in this step; empty for a model without experts.
    """

    loss: float
    gradient_norm: float | None
    learning_rate: float | None
    skipped: bool
    n_micro_batches: int
    n_tokens: int
    metrics: Mapping[str, float]
    recordings: tuple[StepRecording, ...] = ()
    expert_load: Mapping[str, Sequence[int]] = field(default_factory=dict)


class StagedState(Protocol):
    """A copy of an engine's training state."""

    def write(self, folder: Path, ranks: Ranks) -> None:
        """Write a ``dcp`` folder. ``ranks`` are the engine's processes, in a group that nothing else uses meanwhile."""


class TrainEngine(Protocol):
    """The interface of a training engine for trainers and RL code, on each of the engine's processes.

    All processes of the engine must call its methods in the same order. A batch holds the sequences of this process's
    data rank: processes with the same ``data_ranks.rank`` pass equal batches. A batch may be empty if another rank's is
    not. Losses, norms and metrics in results cover all ranks together.
    """

    @property
    def module(self) -> CausalModule: ...

    @property
    def device(self) -> device: ...

    @property
    def data_ranks(self) -> DataRanks:
        """This process's share of a batch."""

    @property
    def version(self) -> int:
        """Number of optimizer steps in the weights of this engine."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """Settings that the engine changes, with reasons; complete after ``initialize``."""

    def initialize(self) -> None:
        """Build the module, load or initialise its weights, create the optimizer."""

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on ``batch``. A trainer passes the result's ``recordings`` on to its run."""

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on ``batch``, without gradients."""

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] in the order of the batch, aligned to predictions, without gradients."""

    def generating(self) -> AbstractContextManager[None]:
        """Prepare ``module`` for generation. Inside the block, forward passes take whole token ids without gradients,
        give whole outputs, and need not be aligned between data ranks. Dropout is off."""

    def weight_manifest(self, dtype: str | None = None) -> WeightManifest:
        """The Hugging Face tensors of the current version, without checksums; not collective.

        Args:
            dtype: dtype to publish, such as ``bfloat16``; ``None`` for the compute dtype.

        Raises:
            WeightsError: the model is a critic, whose weights are not published.
        """

    def weight_buckets(
        self,
        max_bytes: int,
        dtype: str | None = None,
        memory: BucketMemory | None = None,
        *,
        without: Collection[str] = (),
    ) -> Iterator[WeightBucket]:
        """Gather the tensors of ``weight_manifest`` on rank 0, in that order, as ``plan_buckets`` divides them.

        Collective: every process takes the same number of buckets, and gathering happens as they are taken. Rank 0
        holds at most two buckets beside its shards: the tensors of a bucket are overwritten when the next but one is
        taken.

        Args:
            max_bytes: largest size of a bucket; a larger tensor is a bucket alone.
            dtype: dtype of the tensors, such as ``bfloat16``; ``None`` for the compute dtype.
            memory: where rank 0 assembles buckets; ``None`` for two buffers of the engine. Ignored on other ranks.
            without: names of tensors to leave out, the same on every process.
        """

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Write a checkpoint folder: ``hf`` for weights that transformers reads, ``dcp`` to continue training."""

    def stage(self) -> StagedState:
        """Copy the state that ``save`` would write as ``dcp``; training may continue while the copy is written. The
        copy is valid until the next call."""

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Read a folder that ``save`` wrote."""

    def offload(self) -> None:
        """Move weights and optimizer state to host memory and drop gradients, which frees the device.

        Until ``onload``, any other use of the engine raises TrainingError. On a CPU nothing moves, but the rest
        applies. Idempotent.
        """

    def onload(self) -> None:
        """Undo ``offload``; the numbers are those of an engine that never moved. Idempotent."""

    def close(self) -> None:
        """Free the engine's resources."""


@runtime_checkable
class RecordsSteps(Protocol):
    """A training engine that can record more of a step than a profiler sees, such as the times of pipeline actions."""

    def record_next(self, folder: str | None) -> None:
        """Record the next call of ``train_batch``, whose result then has recordings. All processes of the engine call
        it before the same step.

        Args:
            folder: folder of the recordings' files, relative to the run folder; ``None`` takes the request back.
        """


@runtime_checkable
class TrainsAdapters(Protocol):
    """A training engine that can train adapters (``contracts.adapters``) in place of the model's own weights."""

    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside the block, ``forward_batch`` computes with the model's own weights alone. All processes of the engine
        enter it together.

        Raises:
            TrainingError: the model has no adapters.
        """

    @property
    def frozen_weights(self) -> Collection[str]:
        """The Hugging Face tensors that no step changes; none in a model without adapters."""

    def publish_apart(self) -> Mapping[str, Any] | None:
        """From now on ``weight_manifest`` and ``weight_buckets`` have the model's own weights as they are, and the
        adapters under the names of their files. All processes of the engine call it.

        Returns:
            The content of ``adapter_config.json``, from which a server builds the same adapters; ``None`` for a model
            without adapters, which is published as before.
        """


@dataclass(frozen=True)
class Selection:
    """The specs from which one engine is assembled.

    Attributes:
        engine: the training engine.
        model: the model architecture; ``None`` for an engine that brings its models.
        schedule: the pipeline schedule; ``None`` without a pipeline.
        pipeline: splits the model into stages and runs them; ``None`` without a pipeline.
        experts: builds mixture-of-experts blocks; ``None`` for a model without experts.
        adapter: adds trainable parameters to a frozen model; ``None`` to train the model's own weights.
    """

    engine: TrainEngineSpec
    model: ModelSpec | None = None
    schedule: ScheduleSpec | None = None
    pipeline: PipelineSpec | None = None
    experts: MoESpec | None = None
    adapter: AdapterSpec | None = None


class TrainEngineFactory(Protocol):
    """``target`` of a ``TrainEngineSpec``.

    ``parts`` are the chosen model, schedule, pipeline and experts; ``explicit`` the dotted names of the options that
    the user wrote.
    """

    def __call__(
        self,
        config: Any,
        *,
        role: str,
        layout: Layout,
        parts: Selection,
        seed: int,
        total_steps: int | None,
        explicit: frozenset[str] = frozenset(),
    ) -> TrainEngine: ...
