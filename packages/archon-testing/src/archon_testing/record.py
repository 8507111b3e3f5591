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
from archon_core.contracts.loss import Loss
from archon_core.plugins import registry
from archon_engine.models.build_alone import build_alone
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.parameter_names import weight_shapes
from archon_engine.parallel.shards import whole_values
from archon_testing.batches import STEP_LENGTHS, deal, make_batch, token_places
from archon_testing.cases import Case
from archon_testing.engines import CHECKPOINT, CLIP_TO, build_engine, headless
from archon_testing.losses import oracle_loss
from archon_testing.pieces import Piece, own_gradient, own_piece
from archon_testing.pipelines import n_stages_of

RESUMED_AFTER = 1
"""Steps before a run that is resumed goes on in a new engine."""


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step.

    Attributes:
        loss: the loss under that name, the learning rate, and each of the loss's metrics.
        gradient_norm: before clipping.
        gradients: parameter -> its gradient, before clipping.
        weights: parameter -> itself after the step.
    """

    loss: Mapping[str, float]
    gradient_norm: float
    gradients: Mapping[str, Piece]
    weights: Mapping[str, Piece]


@dataclass(frozen=True)
class Record:
    """A run of a case, as one rank has seen it.

    Attributes:
        steps: one per batch.
        outputs: name and time, such as ``logprobs after training`` -> values of ``tokens``.
        initial: parameter -> itself in an engine without a checkpoint, or with one that lacks what may be missing.
        tokens: [T] places of this rank's tokens in the whole first batch; ``None`` for all.
        final: parameter -> itself at the end, gathered whole; looked at in some cases only.
        data_rank: the share of the batch that this rank worked on.
        saved: parameter -> itself when a run that is resumed was saved.
        loaded: the same in the new engine, after loading.
        problems: what is wrong whatever the numbers are, such as a gradient that is still a partial sum.
        copies: parameters of which this rank may hold a copy, for a tie between stages -> the original's name.
        pipelined: whether other ranks hold other parameters.
    """

    steps: tuple[StepRecord, ...] = ()
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    initial: Mapping[str, Piece] = field(default_factory=dict)
    tokens: Tensor | None = None
    final: Mapping[str, Piece] = field(default_factory=dict)
    data_rank: int = 0
    saved: Mapping[str, Piece] = field(default_factory=dict)
    loaded: Mapping[str, Piece] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    pipelined: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The parameters that were recorded."""
        first = self.steps[0].weights if self.steps else self.initial
        return frozenset(first)

    def with_copies(self, copies: Mapping[str, str]) -> Record:
        """This record of one process as stages would have it, where the two ends of a tie have a copy each."""

        def both(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
            return {**pieces, **{copy: pieces[name] for copy, name in copies.items() if name in pieces}}

        steps = [replace(step, gradients=both(step.gradients), weights=both(step.weights)) for step in self.steps]
        return replace(self, steps=tuple(steps), initial=both(self.initial))


def measure(case: Case, folder: Path, scratch: Path) -> Record:
    """Do what ``case.check`` says, from the weights in the reference's ``folder``. Collective.

    Args:
        case: what to run.
        folder: of the reference.
        scratch: a path for what a case that is resumed saves; nothing is there yet.

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
        before = _outputs(engine, batches[0], loss)
        problems: list[str] = []
        steps: list[StepRecord] = []
        saved: dict[str, Piece] = {}
        loaded: dict[str, Piece] = {}
        for step, batch in enumerate(batches):
            if case.check == "resume" and step == RESUMED_AFTER:
                saved = own_pieces(engine)
                engine = resumed(engine, case, folder, scratch)
                loaded = own_pieces(engine)
                stale = [n for n, piece in saved.items() if not torch.equal(piece.values, loaded[n].values)]
                problems += [f"after loading, {name} is not what was saved" for name in stale]
            steps.append(_train(engine, batch, loss, step, problems))
        after = _outputs(engine, batches[0], loss)
        gathered = engine.parameters if case.gathers else {}
        final = {name: Piece.whole(whole_values(weight)) for name, weight in gathered.items()}
    finally:
        engine.close()
    outputs = {f"{name} before training": values for name, values in before.items()}
    outputs |= {f"{name} after training": values for name, values in after.items()}
    return Record(
        tuple(steps),
        outputs,
        tokens=tokens,
        final=final,
        data_rank=data_rank,
        saved=saved,
        loaded=loaded,
        problems=tuple(problems),
        copies=ties_between_stages(case),
        pipelined=pipelined,
    )


def ties_between_stages(case: Case) -> Mapping[str, str]:
    """Parameters that a case's stages hold as copies -> their originals, by the model's own weight map."""
    if n_stages_of(case) == 1:
        return {}
    hf_config = load_hf_config(case.model_config)
    spec = registry().model_for(hf_config.model_type, case.model)
    model = spec.load()
    arguments = model.arguments.from_hf_config(hf_config, critic=case.critic)
    with torch.device("meta"):
        whole = build_alone(spec, arguments)
    return model.weight_map(arguments).resolve(weight_shapes(whole)).ties


def initial_weights(case: Case, folder: Path) -> dict[str, Piece]:
    """What an engine starts with when no checkpoint gives it, by parameter name. Collective."""
    found = _weights_of_new_engine(case, None)
    checkpoint = headless(folder)
    if checkpoint is not None:
        pieces = _weights_of_new_engine(case, checkpoint)
        found |= {f"{name} (from a checkpoint that lacks the head)": piece for name, piece in pieces.items()}
    return found


def resumed(engine: Any, case: Case, folder: Path, scratch: Path) -> Any:
    """A new engine that goes on where ``engine``, which is closed, stands. Collective.

    Args:
        engine: has trained.
        case: what it runs.
        folder: of the reference. The new engine starts from weights of before the first step, so that one that is not
            loaded shows.
        scratch: where to save; another one for each call.
    """
    engine.save(scratch, "dcp")
    engine.close()
    fresh = build_engine(case, folder / CHECKPOINT)
    fresh.load(scratch, "dcp")
    return fresh


def own_pieces(engine: Any) -> dict[str, Piece]:
    """Parameter -> what this rank holds of it."""
    return {name: own_piece(parameter) for name, parameter in engine.parameters.items()}


def oracle_batches(case: Case, hf_config: Any) -> list[Batch]:
    """The whole batch of every step."""
    longest = getattr(hf_config, "max_position_embeddings", None) or max(map(max, STEP_LENGTHS))
    dtype = getattr(torch, case.dtype)
    experts = "moe" in registry().model_for(hf_config.model_type, case.model).needs
    sizes = {"vocab_size": hf_config.vocab_size, "longest": longest, "experts": experts}
    return [make_batch(step, **sizes, dtype=dtype, seed=case.seed) for step in range(len(STEP_LENGTHS))]


def share_of(engine: Any, batch: Batch) -> Sequence[int]:
    """The sequences of ``batch`` that are this data rank's."""
    return deal(len(batch), engine.data_ranks.size)[engine.data_ranks.rank]


def _train(engine: Any, batch: Batch, loss: Loss, step: int, problems: list[str]) -> StepRecord:
    stats: StepStats = engine.train_batch(batch.select(share_of(engine, batch)), loss)
    norm = stats.gradient_norm
    assert norm is not None, "a training step has a norm"
    if stats.n_tokens != batch.n_tokens:
        problems.append(f"step {step + 1} reports {stats.n_tokens} tokens of {batch.n_tokens}")
    parameters: Mapping[str, nn.Parameter] = engine.parameters
    problems += [f"step {step + 1} leaves the gradient of {name} a partial sum" for name in _partial(parameters)]
    # The engine clips in place; what it divided by is its own norm, right or wrong.
    unclip = max(norm / CLIP_TO, 1.0)
    gradients = {name: own_gradient(parameter).scaled(unclip) for name, parameter in parameters.items()}
    weights = own_pieces(engine)
    told = {"loss": stats.loss, "learning rate": stats.learning_rate or 0.0, **stats.metrics}
    return StepRecord(told, norm, gradients, weights)


def _partial(parameters: Mapping[str, nn.Parameter]) -> Iterator[str]:
    for name, parameter in parameters.items():
        gradient = parameter.grad
        if isinstance(gradient, DTensor) and any(placement.is_partial() for placement in gradient.placements):
            yield name


def _outputs(engine: Any, batch: Batch, loss: Loss) -> Mapping[str, Tensor]:
    """Per-token outputs of this rank's share of ``batch``."""
    return engine.forward_batch(batch.select(share_of(engine, batch)), loss.request)


def _weights_of_new_engine(case: Case, checkpoint: Path | None) -> dict[str, Piece]:
    engine = build_engine(case, checkpoint)
    try:
        return own_pieces(engine)
    finally:
        engine.close()
