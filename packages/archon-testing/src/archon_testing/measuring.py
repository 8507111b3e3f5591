"""Runs an engine through a case and records the run.

``measure`` runs on every rank of a world; each rank records the shards that it holds. The only collectives are the
engine's own: ranks send their records to the parent process, which compares them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import StepStats
from archon_core.layout import backend_table, parse_layout
from archon_core.plugins import TrainEngineSpec, registry
from archon_testing.batches import STEP_LENGTHS, STEPS, deal_unevenly, make_batch, make_tree_batch, token_places
from archon_testing.cases import BFLOAT16, Case
from archon_testing.engines import CHECKPOINT, build_engine, optimizer_of, partial_checkpoint
from archon_testing.exports import export_errors, save_and_read, weight_map_of
from archon_testing.held_shards import HeldShard, own_gradient, own_shard
from archon_testing.losses import Counted, OracleLoss, n_targets, oracle_loss
from archon_testing.pipelines import n_stages_of
from archon_testing.precision import rounded_sums
from archon_testing.record import Record, StepRecord
from archon_testing.update_rule import wrong_updates

RESUMED_AFTER = 1
"""Steps before a new engine resumes the run, for one more step."""

_STATE = "optimizer."
"""Prefix of the optimizer's tensors in a training state."""


def measure(
    case: Case, folder: Path, scratch: Path, *, save_to: Path | None = None, with_state: bool = False
) -> Record:
    """Run a case from the weights in the reference's ``folder``, and record it. Collective.

    Args:
        case: the case; for a run resumed on another layout, the part before.
        folder: of the reference.
        scratch: a new path for exports.
        save_to: where to save the training state that resumed runs start from.
        with_state: also record the optimizer's state before and after the resumed step.

    Raises:
        ArchonError: from the engine.
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
            steps = [train_step(engine, case, batches[0], loss, 0, start, problems)]
            problems += rounded_sums(steps[0].gradients, **_sums(case))
        else:
            if case.dtype != "float64":
                outputs = _outputs(engine, batches[0], loss, "before")
            for step, batch in enumerate(batches):
                if step == RESUMED_AFTER and save_to is not None:
                    engine.save(save_to, "dcp")
                trained = train_step(engine, case, batch, loss, step, start, problems)
                seen = with_state and step <= RESUMED_AFTER
                steps.append(replace(trained, state=own_state(engine)) if seen else trained)
            # After training, float32 weights may differ by more than the limit of outputs.
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
    """Train up to the step that is resumed, and save the training state. Collective.

    Args:
        case: the run before it is resumed.
        folder: of the reference.
        target: a new path for the state.
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
    """Resume from a saved training state for one step, and record it. Collective.

    Args:
        case: on the layout that resumes.
        folder: of the reference. The new engine starts from the initial checkpoint, so that a tensor that is not loaded
            shows.
        saved: a ``dcp`` folder.
    """
    engine = build_engine(case, folder / CHECKPOINT)
    try:
        engine.load(saved, "dcp")
        loss, batch = oracle_loss(critic=case.critic), oracle_batches(case, engine.hf_config)[RESUMED_AFTER]
        loaded, loaded_state = own_shards(engine), own_state(engine)
        problems: list[str] = []
        step = train_step(engine, case, batch, loss, RESUMED_AFTER, loaded, problems)
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
    """Copied parameter -> original, for weights that two stages hold, by the model's weight map."""
    if n_stages_of(case) == 1:
        return {}
    return weight_map_of(case).ties


def initial_weights(case: Case, folder: Path) -> dict[str, HeldShard]:
    """The weights that an engine initialises without a checkpoint, by parameter name. Collective."""
    found = _weights_of_new_engine(case, None)
    checkpoint = partial_checkpoint(folder)
    if checkpoint is not None:
        shards = _weights_of_new_engine(case, checkpoint)
        found |= {f"{name} (from a checkpoint that lacks the head)": shard for name, shard in shards.items()}
    return found


def own_shards(engine: Any) -> dict[str, HeldShard]:
    """Parameter -> this rank's shard."""
    return {name: own_shard(parameter) for name, parameter in engine.parameters.items()}


def own_state(engine: Any) -> dict[str, HeldShard]:
    """Parameter and entry -> this rank's shard of the optimizer's state; empty if the engine does not expose it."""
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
    make = make_batch if case.prefixes == "distinct" else make_tree_batch
    return [make(step, **sizes, dtype=dtype, seed=case.seed) for step in range(STEPS[case.dtype])]


def share_of(engine: Any, batch: Batch) -> Sequence[int]:
    """The sequences of ``batch`` that this data rank works on."""
    return deal_unevenly(len(batch), engine.data_ranks.size)[engine.data_ranks.rank]


def train_step(
    engine: Any,
    case: Case,
    batch: Batch,
    loss: OracleLoss,
    step: int,
    before: Mapping[str, HeldShard],
    problems: list[str],
) -> StepRecord:
    """Run one step; appends errors that need no reference. ``before``: the weights before the first step."""
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
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    clipped = {name: own_gradient(parameter) for name, parameter in parameters.items() if name not in frozen}
    weights = own_shards(engine)
    problems += [
        f"step {step + 1} changes {name}, which is frozen"
        for name in frozen
        if parameters[name].grad is not None or not torch.equal(weights[name].values, before[name].values)
    ]
    if step == 0:
        rate, trained = stats.learning_rate or 0.0, {name: weights[name] for name in clipped}
        problems += wrong_updates(before, clipped, trained, learning_rate=rate, optimizer=optimizer_of(case))
    # The engine clips in place, with its own norm, right or wrong.
    limit = optimizer_of(case).gradient_clipping
    unclip = max(norm / limit, 1.0) if limit else 1.0
    gradients = {name: shard.scaled(unclip) for name, shard in clipped.items()}
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
        "vectors": dense * dims.tp > 1,  # tensor ranks hold copies of a vector; each saw other tokens or heads
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
