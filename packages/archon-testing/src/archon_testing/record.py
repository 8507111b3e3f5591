"""What the oracle writes down of a run, and how it makes an engine do the run.

``measure`` works on every rank of a world, and every rank has a record of its own, of the pieces that it holds. Beside
the engine's own there is no collective in it: ranks tell the parent what they saw, which is where they are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_testing.batches import STEP_LENGTHS, STEPS, deal, make_batch, token_places
from archon_testing.cases import BFLOAT16, Case
from archon_testing.engines import CHECKPOINT, build_engine, headless, optimizer_of
from archon_testing.exports import export_errors, save_and_read, weight_map_of
from archon_testing.held_shards import HeldShard, own_gradient, own_shard
from archon_testing.losses import Counted, OracleLoss, n_targets, oracle_loss
from archon_testing.pipelines import n_stages_of
from archon_testing.precision import rounded_sums
from archon_testing.update_rule import wrong_updates

RESUMED_AFTER = 1
"""Steps before a run that is resumed goes on in a new engine, for one step."""

_STATE = "optimizer."
"""How a training state's names of the optimizer's tensors begin."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        loss: the loss under that name, the learning rate, and each of the loss's metrics.
        gradient_norm: before clipping.
        gradients: parameter -> its gradient, before clipping.
        weights: parameter -> itself after the step.
        state: parameter and entry, such as ``norm.weight exp_avg`` -> the optimizer's state after the step; looked at
            in references and in resumed runs only.
        counted: what the loss was given on this rank.
        targets: those of this rank's share of the batch.
    """

    loss: Mapping[str, float]
    gradient_norm: float
    gradients: Mapping[str, HeldShard]
    weights: Mapping[str, HeldShard]
    state: Mapping[str, HeldShard] = field(default_factory=dict)
    counted: Counted = field(default_factory=Counted)
    targets: float = 0.0


@dataclass(frozen=True)
class Record:
    """A run of a case, as one rank has seen it.

    Attributes:
        steps: one per batch; of a resumed run, those after it was resumed.
        outputs: name and time, such as ``logprobs after training`` -> values of ``tokens``.
        initial: parameter -> itself in an engine without a checkpoint, or with one that lacks what may be missing.
        start: parameter -> itself before the first step.
        tokens: [T] places of this rank's tokens in the whole first batch; ``None`` for all.
        exported: Hugging Face name -> how far the exported tensor is from this rank's part of it.
        data_rank: the share of the batch that this rank worked on.
        loaded: parameter -> itself in a resumed run's new engine, after loading.
        loaded_state: the same of the optimizer's state.
        problems: what is wrong whatever the numbers are, such as a gradient that is still a partial sum.
        copies: parameters of which this rank may hold a copy, for a tie between stages -> the original's name.
        pipelined: whether other ranks hold other parameters.
        comparable: whether its numbers can be held against those of one process. Those in bfloat16 of a model with
            experts cannot: rounding sends tokens to other experts.
        first_step: number of the first of ``steps``, from 1.
    """

    steps: tuple[StepRecord, ...] = ()
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, HeldShard] = field(default_factory=dict)
    start: Mapping[str, HeldShard] = field(default_factory=dict)
    tokens: Tensor | None = None
    exported: Mapping[str, float] = field(default_factory=dict)
    data_rank: int = 0
    loaded: Mapping[str, HeldShard] = field(default_factory=dict)
    loaded_state: Mapping[str, HeldShard] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    pipelined: bool = False
    comparable: bool = True
    first_step: int = 1

    @property
    def names(self) -> frozenset[str]:
        """The parameters that were recorded."""
        first = self.steps[0].weights if self.steps else self.initial
        return frozenset(first)

    def with_copies(self, copies: Mapping[str, str]) -> Record:
        """This record of one process as stages would have it, where the two ends of a tie have a copy each."""

        def both(pieces: Mapping[str, HeldShard]) -> dict[str, HeldShard]:
            return {**pieces, **{copy: pieces[name] for copy, name in copies.items() if name in pieces}}

        steps = [replace(step, gradients=both(step.gradients), weights=both(step.weights)) for step in self.steps]
        return replace(self, steps=tuple(steps), initial=both(self.initial), start=both(self.start))

    def beside(self, other: Record) -> Iterator[tuple[int, StepRecord, StepRecord]]:
        """Number, own record and that of ``other``, of every step that both have."""
        for number, step in enumerate(self.steps, start=self.first_step):
            if number - other.first_step < len(other.steps):
                yield number, step, other.steps[number - other.first_step]


def measure(
    case: Case, folder: Path, scratch: Path, *, save_to: Path | None = None, with_state: bool = False
) -> Record:
    """Do what ``case.check`` says, from the weights in the reference's ``folder``. Collective.

    Args:
        case: what to run; of a run that is resumed on another layout, the part before.
        folder: of the reference.
        scratch: a path for what a case saves; nothing is there yet.
        save_to: where a training run leaves its state after the steps that a resumed run skips.
        with_state: record the optimizer's state around the step of resumed runs, too.

    Raises:
        ArchonError: as the engine does.
    """
    pipelined = n_stages_of(case) > 1
    if case.check == "initial":
        return Record(initial=initial_weights(case, folder), copies=ties_between_stages(case), pipelined=pipelined)
    engine = build_engine(case, folder / CHECKPOINT)
    try:
        loss = oracle_loss(critic=case.critic)
        batches = oracle_batches(case, engine.hf_config)
        tokens, data_rank = token_places(batches[0], share_of(engine, batches[0])), engine.data_ranks.rank
        start = own_shards(engine)
        problems: list[str] = []
        outputs: dict[str, Tensor] = {}
        steps: list[StepRecord] = []
        if case.check == "precision":
            steps = [_train(engine, case, batches[0], loss, 0, start, problems)]
            problems += rounded_sums(steps[0].gradients, **_sums(case))
        else:
            if case.dtype != "float64":
                outputs = _outputs(engine, batches[0], loss, "before")
            for step, batch in enumerate(batches):
                if step == RESUMED_AFTER and save_to is not None:
                    engine.save(save_to, "dcp")
                trained = _train(engine, case, batch, loss, step, start, problems)
                seen = with_state and step <= RESUMED_AFTER
                steps.append(replace(trained, state=own_state(engine)) if seen else trained)
            # Trained weights of float32 runs may differ by more than what they give may.
            if case.dtype == "float64":
                outputs = _outputs(engine, batches[0], loss, "after")
        exported: Mapping[str, float] = {}
        if case.exports:
            exported, wrong = export_errors(save_and_read(engine, scratch), own_shards(engine), weight_map_of(case))
            problems += wrong
        has_experts = _has_experts(case)
    finally:
        engine.close()
    return Record(
        tuple(steps),
        outputs=outputs,
        start=start,
        tokens=tokens,
        exported=exported,
        data_rank=data_rank,
        problems=tuple(problems),
        copies=ties_between_stages(case),
        pipelined=pipelined,
        comparable=case.compute_dtype != BFLOAT16 or not has_experts,
    )


def save_training_state(case: Case, folder: Path, target: Path) -> None:
    """Train as far as a run that is resumed, and save. Collective.

    Args:
        case: the run before it is resumed.
        folder: of the reference.
        target: where to save; nothing is there yet.
    """
    engine = build_engine(case, folder / CHECKPOINT)
    try:
        loss = oracle_loss(critic=case.critic)
        for batch in oracle_batches(case, engine.hf_config)[:RESUMED_AFTER]:
            engine.train_batch(batch.select(share_of(engine, batch)), loss)
        engine.save(target, "dcp")
    finally:
        engine.close()


def measure_resumed(case: Case, folder: Path, saved: Path) -> Record:
    """Go on for a step from a training state that some layout saved. Collective.

    Args:
        case: on the layout that goes on.
        folder: of the reference. The new engine starts from weights of before the first step, so that one that is not
            loaded shows.
        saved: a ``dcp`` folder.
    """
    engine = build_engine(case, folder / CHECKPOINT)
    try:
        engine.load(saved, "dcp")
        loss, batch = oracle_loss(critic=case.critic), oracle_batches(case, engine.hf_config)[RESUMED_AFTER]
        loaded, loaded_state = own_shards(engine), own_state(engine)
        problems: list[str] = []
        step = _train(engine, case, batch, loss, RESUMED_AFTER, loaded, problems)
        step = replace(step, state=own_state(engine))
        data_rank = engine.data_ranks.rank
    finally:
        engine.close()
    return Record(
        (step,),
        first_step=RESUMED_AFTER + 1,
        data_rank=data_rank,
        loaded=loaded,
        loaded_state=loaded_state,
        problems=tuple(problems),
        copies=ties_between_stages(case),
        pipelined=n_stages_of(case) > 1,
    )


def ties_between_stages(case: Case) -> Mapping[str, str]:
    """Parameters that a case's stages hold as copies -> their originals, by the model's own weight map."""
    if n_stages_of(case) == 1:
        return {}
    return weight_map_of(case).ties


def initial_weights(case: Case, folder: Path) -> dict[str, HeldShard]:
    """What an engine starts with when no checkpoint gives it, by parameter name. Collective."""
    found = _weights_of_new_engine(case, None)
    checkpoint = headless(folder)
    if checkpoint is not None:
        pieces = _weights_of_new_engine(case, checkpoint)
        found |= {f"{name} (from a checkpoint that lacks the head)": piece for name, piece in pieces.items()}
    return found


def own_shards(engine: Any) -> dict[str, HeldShard]:
    """Parameter -> what this rank holds of it."""
    return {name: own_shard(parameter) for name, parameter in engine.parameters.items()}


def own_state(engine: Any) -> dict[str, HeldShard]:
    """Parameter and entry -> what this rank holds of the optimizer's state; nothing of an engine that does not tell."""
    found = {}
    for part in getattr(engine.stage(), "parts", ()):
        if part.name.startswith(_STATE):
            parameter, _, entry = part.name.removeprefix(_STATE).rpartition(".")
            found[f"{parameter} {entry}"] = HeldShard(part.values().clone(), part.box, tuple(part.shape))
    return found


def oracle_batches(case: Case, hf_config: Any) -> list[Batch]:
    """The whole batch of every step of a training run."""
    longest = getattr(hf_config, "max_position_embeddings", None) or max(map(max, STEP_LENGTHS))
    # A loss in bfloat16 computes in float32.
    dtype = torch.float32 if case.compute_dtype == BFLOAT16 else getattr(torch, case.dtype)
    sizes = {"vocab_size": hf_config.vocab_size, "longest": longest, "experts": _has_experts(case)}
    return [make_batch(step, **sizes, dtype=dtype, seed=case.seed) for step in range(STEPS[case.dtype])]


def share_of(engine: Any, batch: Batch) -> Sequence[int]:
    """The sequences of ``batch`` that are this data rank's."""
    return deal(len(batch), engine.data_ranks.size)[engine.data_ranks.rank]


def _train(
    engine: Any,
    case: Case,
    batch: Batch,
    loss: OracleLoss,
    step: int,
    before: Mapping[str, HeldShard],
    problems: list[str],
) -> StepRecord:
    """One step, and what is wrong with it by itself. ``before`` are the weights that a first step starts from."""
    share = batch.select(share_of(engine, batch))
    loss.counted = Counted()
    stats: StepStats = engine.train_batch(share, loss)
    norm = stats.gradient_norm
    assert norm is not None, "a training step has a norm"
    if stats.n_tokens != batch.n_tokens:
        problems.append(f"step {step + 1} reports {stats.n_tokens} tokens of {batch.n_tokens}")
    counted = loss.counted
    if counted.n_calls and counted.targets != n_targets(share):
        problems.append(f"step {step + 1}: the loss is applied to {counted.targets:g} of {n_targets(share):g} targets")
    parameters: Mapping[str, nn.Parameter] = engine.parameters
    problems += [f"step {step + 1} leaves the gradient of {name} a partial sum" for name in _partial(parameters)]
    clipped = {name: own_gradient(parameter) for name, parameter in parameters.items()}
    weights = own_shards(engine)
    if step == 0:
        rate = stats.learning_rate or 0.0
        problems += wrong_updates(before, clipped, weights, learning_rate=rate, optimizer=optimizer_of(case))
    # The engine clips in place; what it divided by is its own norm, right or wrong.
    limit = optimizer_of(case).gradient_clipping
    unclip = max(norm / limit, 1.0) if limit else 1.0
    gradients = {name: piece.scaled(unclip) for name, piece in clipped.items()}
    reported = {"loss": stats.loss, "learning rate": stats.learning_rate or 0.0, **stats.metrics}
    return StepRecord(reported, norm, gradients, weights, counted=counted, targets=n_targets(share))


def _sums(case: Case) -> dict[str, bool]:
    """Whether gradients of matrices, of experts and of vectors are sums over ranks or micro-batches."""
    layout = parse_layout(case.layout, backends=backend_table(registry().all(TrainEngineSpec)))
    dims = layout.parallel_dims(moe=_has_experts(case))
    dense = dims.dp_replicate * dims.dp_shard * dims.cp
    several = {
        "dense": dense > 1,
        "experts": dims.dp_replicate * dims.edp > 1,
        "vectors": dense * dims.tp > 1,  # tensor ranks hold copies of them, each of which saw other tokens or heads
    }
    return {what: over_ranks or case.n_mbs > 1 for what, over_ranks in several.items()}


def _has_experts(case: Case) -> bool:
    return "moe" in registry().model_for(case.model_config["model_type"], case.model).needs


def _partial(parameters: Mapping[str, nn.Parameter]) -> Iterator[str]:
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(placement.is_partial() for placement in gradient.placements):
            yield name


def _outputs(engine: Any, batch: Batch, loss: OracleLoss, when: str) -> dict[str, Tensor]:
    """Per-token outputs of this rank's share of ``batch``, before or after training."""
    outputs = engine.forward_batch(batch.select(share_of(engine, batch)), loss.request)
    return {f"{name} {when} training": values for name, values in outputs.items()}


def _weights_of_new_engine(case: Case, checkpoint: Path | None) -> dict[str, HeldShard]:
    engine = build_engine(case, checkpoint)
    try:
        return own_shards(engine)
    finally:
        engine.close()
