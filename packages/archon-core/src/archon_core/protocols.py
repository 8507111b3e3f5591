"""Interfaces at the package borders: what the targets of specs must provide, and what the engine asks of a loss.

No torch is imported at run time; the annotations name torch types for readers and type checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, device, dtype, nn

    from archon_core.config.decisions import Decision
    from archon_core.config.schema import ArchonOptions
    from archon_core.data.batch import Batch
    from archon_core.distributed.ranks import DataRanks, Ranks
    from archon_core.engine.pipeline_parts import PipelineParts
    from archon_core.generation import Completion, GenerationRequest
    from archon_core.moe import ExpertParallel, MoESettings
    from archon_core.nn.packed import OutputName, PackedSequences
    from archon_core.pipeline import StagePlan
    from archon_core.plugins.specs import ScheduleSpec
    from archon_core.run.context import RunContext

Unit = Literal["token", "sequence", "constant"]
"""What a loss term is normalised by: weighted tokens, weighted sequences, or a constant."""


class CausalModule(Protocol):
    """A decoder model. Parts that are not on this pipeline stage are ``None``.

    ``embed`` maps ids [T] to hidden states [T, hidden]; ``layers`` is an ``nn.ModuleDict`` with string ids;
    ``norm`` and ``head`` finish. Without ``embed`` the input is hidden states; without ``head`` the output is.
    """

    embed: nn.Module | None
    layers: nn.ModuleDict
    norm: nn.Module | None
    head: nn.Module | None

    def __call__(self, x: Tensor, packed: PackedSequences) -> Tensor | dict[OutputName, Tensor]: ...


class ModelArguments(Protocol):
    """A frozen dataclass with a model's own sizes and options.

    It may have ``decisions``, a sequence of ``config.decisions.Decision``: what the module does other than the model's
    configuration says, ``option`` being an entry of that.
    """

    @classmethod
    def from_hf_config(cls, config: Any, *, critic: bool) -> ModelArguments:
        """Read a ``transformers`` config. Raises ``ModelError`` for what the architecture cannot express."""


@dataclass(frozen=True)
class OutputRequest:
    """Per-token outputs of a forward pass.

    Attributes:
        names: which ones. ``logprobs`` and ``entropy`` of a language model, ``values`` of a critic.
        temperature: logits are divided by it first.
    """

    names: tuple[OutputName, ...] = ("logprobs",)
    temperature: float = 1.0


@dataclass(frozen=True)
class LossSums:
    """What a loss returns for one micro-batch: sums, not means.

    Attributes:
        terms: unit -> scalar tensor; the objective is the sum over units of term / global weight.
        metrics: name -> (unit, detached scalar tensor), reported as sum / global weight of that unit.
    """

    terms: Mapping[Unit, Tensor]
    metrics: Mapping[str, tuple[Unit, Tensor]] = field(default_factory=dict)


@runtime_checkable
class Loss(Protocol):
    """A loss that cannot depend on how its batch is split into micro-batches or over ranks.

    ``weights`` depends on the batch alone. The engine sums it over all micro-batches and ranks before any
    forward pass, and back-propagates each term of ``__call__`` divided by that global weight.
    """

    request: OutputRequest

    def weights(self, batch: Batch) -> Mapping[Unit, Tensor | float]:
        """The batch's weight per unit that ``__call__`` uses; additive over any split of the batch."""

    def __call__(self, outputs: Mapping[OutputName, Tensor], micro_batch: Batch) -> LossSums:
        """Sums over the micro-batch; ``outputs`` are [T] tensors aligned to predictions."""


@dataclass(frozen=True)
class StepStats:
    """One optimizer step, or one evaluation pass.

    Attributes:
        loss: the objective, summed over units, of the whole batch.
        gradient_norm: global L2 norm before clipping; ``None`` in evaluation.
        learning_rate: that of the step; ``None`` in evaluation.
        skipped: the update was left out because the norm was not finite.
        n_micro_batches: micro-batches that the batch was split into.
        n_tokens: tokens in the batch, over all ranks.
        metrics: the loss's metrics, divided by their global weights.
    """

    loss: float
    gradient_norm: float | None
    learning_rate: float | None
    skipped: bool
    n_micro_batches: int
    n_tokens: int
    metrics: Mapping[str, float]


class StagedState(Protocol):
    """A training state apart from the engine that it was taken of."""

    def write(self, folder: Path, ranks: Ranks) -> None:
        """Write a ``dcp`` folder. ``ranks`` are the engine's processes, with a group that nothing else uses now."""


class TrainEngine(Protocol):
    """What trainers and RL code see of a training engine, on every process of it.

    Methods must be called by all of the engine's processes, in the same order. A batch is the sequences of this
    process's data rank: processes with the same ``data_ranks.rank`` pass equal batches, and a batch may be empty as
    long as some rank's is not. Losses, norms and metrics in the result are those of all ranks together.
    """

    @property
    def module(self) -> CausalModule: ...

    @property
    def device(self) -> device: ...

    @property
    def data_ranks(self) -> DataRanks:
        """Which share of a batch is this process's."""

    @property
    def version(self) -> int:
        """Counts the optimizer steps whose weights this engine holds."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """What the engine does other than asked, with reasons; complete after ``initialize``."""

    def initialize(self) -> None:
        """Build the module, load or initialise its weights, make the optimizer."""

    def train_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """One optimizer step on ``batch``."""

    def eval_batch(self, batch: Batch, loss: Loss) -> StepStats:
        """The loss and its metrics on ``batch``, without gradients."""

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """Per-token outputs [T] in the order of the batch, aligned to predictions, without gradients."""

    def generating(self) -> AbstractContextManager[None]:
        """Ready ``module`` for generation: inside the block, forward passes take whole token ids without gradients,
        give whole outputs, and need not be aligned between data ranks. Switches dropout off."""

    def save(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Write a checkpoint folder: ``hf`` for weights that transformers reads, ``dcp`` to continue training."""

    def stage(self) -> StagedState:
        """What ``save`` would write as ``dcp``, copied: training may go on while it is written. Until the next call."""

    def load(self, path: Path, format: Literal["hf", "dcp"]) -> None:
        """Read what ``save`` wrote."""

    def offload(self) -> None:
        """Move weights and optimizer state to host memory and drop gradients, so that the device is free for others.

        Nothing else may be asked of the engine until ``onload``: TrainingError. On a CPU nothing moves, and the rest
        holds. Calling it twice is calling it once.
        """

    def onload(self) -> None:
        """Move back what ``offload`` moved; the numbers are those of an engine that stayed. Twice is once."""

    def close(self) -> None:
        """Free what the engine holds."""


class TrainEngineFactory(Protocol):
    """``target`` of a ``TrainEngineSpec``. ``explicit`` are the dotted names of the options that the user wrote."""

    def __call__(
        self,
        config: Any,
        *,
        role: str,
        layout: Any,
        seed: int,
        total_steps: int | None,
        explicit: frozenset[str] = frozenset(),
    ) -> TrainEngine: ...


class InferenceEngine(Protocol):
    """Samples completions and tells which weights they came from."""

    @property
    def version(self) -> int:
        """The version of the weights in use."""

    def generate(self, requests: Sequence[GenerationRequest]) -> list[list[Completion]]:
        """Per request, its ``n_samples`` completions, in order."""

    def health(self) -> bool:
        """Whether requests would be answered now."""

    def pause(self) -> None:
        """Stop taking requests."""

    def resume(self) -> None:
        """Take requests again."""

    def update_weights(self, version: int) -> None:
        """Switch to the published weights of ``version``."""

    def close(self) -> None:
        """Free what the engine holds."""


class InferenceEngineFactory(Protocol):
    """``target`` of an ``InferenceEngineSpec``. ``trainer`` is the engine whose weights are sampled from."""

    def __call__(self, config: Any, *, trainer: TrainEngine) -> InferenceEngine: ...


class Tokenizer(Protocol):
    """The part of a ``transformers`` tokenizer that trainers use."""

    eos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...


class Reward(Protocol):
    """Scores a completion. ``record`` is the dataset record that the prompt was made from."""

    def __call__(self, prompt: str, completion: str, record: Mapping[str, Any]) -> float:
        """One finite number: of Python, numpy or torch, or a boolean. Anything else, or an exception, ends the run
        with an error that names the record."""


class Dataset(Protocol):
    """Records of one split, by index; the same index always gives the same record."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class DatasetFactory(Protocol):
    """``target`` of a ``DatasetSpec``."""

    def __call__(self, config: Any, *, split: Literal["train", "validation"], seed: int) -> Dataset: ...


class Trainer(Protocol):
    """Runs training to its end. ``fit`` returns normally when it is reached."""

    def fit(self) -> None: ...


class TrainerFactory(Protocol):
    """``trainer`` of an ``AlgorithmSpec``; ``algorithm`` is what the spec's target loads."""

    def __call__(self, run: RunContext, algorithm: Any) -> Trainer: ...


class StageSplit(Protocol):
    """``split`` of a ``PipelineSpec``: a pure function."""

    def __call__(
        self,
        layer_costs: Sequence[float],
        *,
        embed_cost: float,
        head_cost: float,
        schedule: ScheduleSpec,
        n_ranks: int,
        options: ArchonOptions,
        role: str,
    ) -> StagePlan:
        """Cut a decoder into stages and lay them over ``n_ranks`` pipeline ranks.

        Args:
            layer_costs: time of each layer, in any unit.
            embed_cost: of the embedding, in the same.
            head_cost: of final norm and head.
            schedule: says how many stages a rank has, and where they lie.
            n_ranks: pipeline ranks, at least 2.
            options: ``pp_layers_per_stage`` and the like.
            role: the name of their section, for messages.

        Raises:
            LayoutError: a stage would be empty.
            ConfigError: the options fit neither the schedule nor the model.
        """


class PipelinedRunnerFactory(Protocol):
    """``target`` of a ``PipelineSpec``; the result is an ``archon_core.engine.runner.Runner``."""

    def __call__(self, pipeline: PipelineParts) -> Any: ...


class MoEBuilder(Protocol):
    """Builds, shards and looks after mixture-of-experts blocks; see ``archon_core.moe`` for what a block is."""

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        """The block of a layer, which may be on the meta device.

        Args:
            settings: the model's.
            layer: its number in the whole model, under which it reports.
        """

    def shard(self, block: nn.Module, place: ExpertParallel) -> None:
        """Make the parameters of ``block.experts`` DTensors over ``place.mesh``, on the meta device, in place, and have
        the block exchange tokens with the other ranks.

        Raises:
            LayoutError: ep does not divide the experts, or etp their intermediate size.
        """

    def whole_experts(self, blocks: Sequence[nn.Module]) -> AbstractContextManager[None]:
        """Gather the experts of ``blocks`` for the length of the context: forward passes inside, without gradients,
        need no other rank. Entering is collective; parameters are not sharded by FSDP inside."""

    def update(self, blocks: Mapping[str, nn.Module], totals: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Change what is not trained by gradients, after an optimizer step.

        Args:
            blocks: the layer's number, as text -> block, of those that are here.
            totals: the same for all of the model -> what blocks have reported (``packed.Auxiliary``), summed over all
                tokens of the step.
        """

    def decisions(self, device: str, dtype: dtype, *, role: str) -> list[Decision]:
        """What blocks do on ``device`` in ``dtype`` other than asked, and how they choose where nothing was asked.

        Args:
            role: the name of the engine's section, for the options' names.
        """

    def metrics(self, totals: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, float]:
        """Names without prefix and values of what is worth logging."""


class MoEBuilderFactory(Protocol):
    """``target`` of a ``MoESpec``. ``options`` are those of the engine, the plugin's own among them."""

    def __call__(self, options: ArchonOptions) -> MoEBuilder: ...


class WeightTransport(Protocol):
    """Moves published weights to inference servers."""

    def send(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None: ...


class Launcher(Protocol):
    """Starts the processes of a run and waits for them; returns the exit code."""

    def __call__(self, config: Any, entry: Callable[[], None]) -> int: ...
