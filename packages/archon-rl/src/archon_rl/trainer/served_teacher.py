"""A teacher on inference servers (``teacher.engine_type: rollout``): they score the sequences of a batch.

The trainer's ranks hold nothing of the teacher, so it may be larger than they could hold, and several runs can share
running servers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import OutputName
from archon_core.contracts.rollout import ScoredModel, ScoringEngine
from archon_core.errors import ConfigError
from archon_core.plugins import registry
from archon_core.plugins.inference_engines import find_inference_engine
from archon_rl.trainer.engines import engine_layout
from archon_train.run.context import RunContext
from archon_train.teacher_servers import TEACHER_SERVERS, explain_no_scorer

TOKENS_PER_REQUEST = 16384
"""Tokens that a server scores at once, unless ``teacher.mb_spec.max_tokens_per_mb`` says otherwise."""


@dataclass(frozen=True)
class ServedTeacher:
    """Returns the teacher's log-probabilities for whole batches, as ``SharedEngine`` does. Collective.

    Attributes:
        servers: score with the teacher's weights.
        temperature: at which they score.
    """

    servers: ScoringEngine
    temperature: float

    def close(self) -> None:
        """End the servers that were started for it."""
        self.servers.close()

    def forward_batch(self, batch: Batch, request: OutputRequest) -> dict[OutputName, Tensor]:
        """The log-probabilities [T] of the whole ``batch``, aligned to predictions, float64 on the CPU. Servers score
        whole sequences, so ``request.where`` saves nothing."""
        expected = OutputRequest(("logprobs",), self.temperature, request.where)
        assert request == expected, "a teacher gives log-probabilities alone"
        sequences = [ids.tolist() for ids in batch.input_ids.split(batch.lengths)]
        rows = self.servers.score(sequences)
        # The last position of a sequence predicts nothing.
        values = [value for row in rows for value in (*row, 0.0)]
        return {"logprobs": torch.tensor(values, dtype=torch.float64)}


def build_served_teacher(run: RunContext, section: Any, *, vocab_size: int, temperature: float) -> ServedTeacher:
    """The teacher on the servers of ``section.rollout``, which it starts unless they have addresses. Collective.

    Args:
        section: the complete ``teacher`` section, whose path has the weights.
        vocab_size: the actor's.
        temperature: at which distributions are compared.

    Raises:
        ConfigError, ServerError: on every rank; see ``ScoringEngineFactory``.
    """
    layout, rollout = engine_layout(run, TEACHER_SERVERS), engine_layout(run, "rollout")
    spec = find_inference_engine(registry(), layout.backend)
    if not spec.scorer:
        raise ConfigError(explain_no_scorer(layout))
    model = ScoredModel(
        path=section.path,
        vocab_size=vocab_size,
        max_tokens=section.mb_spec.max_tokens_per_mb or TOKENS_PER_REQUEST,
        temperature=temperature,
        dtype=section.dtype,
        run_as=getattr(getattr(section, "archon", None), "model", None) or "",
    )
    started_here = not (rollout.on_trainer_ranks or run.config.rollout.addresses)
    servers = spec.load_part("scorer")(
        section.rollout,
        model,
        option=TEACHER_SERVERS,
        ranks=run.ranks,
        folder=run.folder.path / "teacher-servers",
        options=getattr(run.config, layout.backend, None),
        devices_before=rollout.world_size if started_here else 0,
        stop=lambda: run.stop.requested,
    )
    run.record(servers.decisions)
    return ServedTeacher(servers, temperature)
