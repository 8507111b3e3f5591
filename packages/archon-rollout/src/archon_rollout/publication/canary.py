"""The canary: after a commit, each server completes a fixed prompt, and the trainer recomputes its log-probabilities.

It finds what checksums cannot: tensors that arrived and were loaded wrongly, or tokens that carry the wrong version.
Log-probabilities that differ by less than the tolerance of the dtype pass, so it does not replace checksums, and in
bfloat16 it misses small errors of a server, such as experts that vLLM 0.32 loads wrongly in place.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.contracts.serving import ServerDriver
from archon_core.errors import ServerError
from archon_core.serving.record import ServerRecord

TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-3, "float16": 0.1, "bfloat16": 0.25}
"""Compute dtype -> largest difference of one log-probability. Servers compute in another order than the trainer."""


@dataclass(frozen=True)
class Canary:
    """A fixed prompt.

    Attributes:
        prompt_ids: the prompt.
        n_tokens: length of the completion.
        tolerance: largest difference of a log-probability; ``None`` for that of the dtype in ``TOLERANCE``.
        vocab_size: the trainer's; token ids are below it. ``None`` if unknown.
    """

    prompt_ids: tuple[int, ...]
    n_tokens: int = 8
    tolerance: float | None = None
    vocab_size: int | None = None

    @property
    def request(self) -> GenerationRequest:
        """Greedy, and without an end: every server generates ``n_tokens``. Log-probabilities are at temperature 1."""
        config = GenerationConfig(max_new_tokens=self.n_tokens, greedy=True)
        return GenerationRequest(self.prompt_ids, config, seeds=(0,))


def ask_server(driver: ServerDriver, server: ServerRecord, canary: Canary, *, timeout: float) -> Completion:
    """One server's completion.

    Raises:
        ServerError: the server gives none, or one that the trainer's model cannot read: it would fail on every rank.
    """
    request_id = f"canary-{uuid.uuid4().hex}"  # a server may have canaries of several trainers
    answer = asyncio.run(driver.generate(server, canary.request, request_id=request_id, timeout=timeout))
    if len(answer) != 1 or not answer[0].token_ids:
        raise ServerError(f"canary: found {len(answer)} completions, or no token; one completion was requested")
    ids = answer[0].token_ids
    if len(ids) > canary.n_tokens:
        raise ServerError(f"canary: found a completion of {len(ids)} tokens; {canary.n_tokens} were requested")
    limit = math.inf if canary.vocab_size is None else canary.vocab_size
    outside = [token for token in ids if not isinstance(token, int) or not 0 <= token < limit]
    if outside:
        allowed = "ids from 0" if canary.vocab_size is None else f"0 to {canary.vocab_size - 1}"
        raise ServerError(
            f"canary: found token id {outside[0]}; allowed are {allowed}, the trainer's vocabulary; serve the "
            "trainer's model"
        )
    return answer[0]


def trainer_logprobs(
    engine: TrainEngine, prompt_ids: Sequence[int], token_ids: Sequence[Sequence[int]]
) -> list[list[float]]:
    """The trainer's log-probabilities of several completions of one prompt. Collective over the engine's processes."""
    if not token_ids:
        return []
    rows = [torch.tensor([*prompt_ids, *ids]) for ids in token_ids]
    outputs = engine.forward_batch(Batch.from_sequences(rows), OutputRequest(("logprobs",)))["logprobs"].tolist()
    found, start = [], 0
    for row, ids in zip(rows, token_ids, strict=True):
        # The value at position t belongs to token t + 1.
        first = start + len(prompt_ids) - 1
        found.append(outputs[first : first + len(ids)])
        start += len(row)
    return found


def canary_problem(completion: Completion, expected: Sequence[float], *, version: int, tolerance: float) -> str:
    """Why a completion is not that of the published weights; empty if it is."""
    others = sorted(set(completion.versions) - {version})
    if others:
        return f"its tokens carry version {others[0]}, not {version}"
    for index, (found, wanted) in enumerate(zip(completion.logprobs, expected, strict=True)):
        if not math.isfinite(found) or abs(found - wanted) > tolerance:
            return (
                f"the log-probability of token {index} of the canary is {found:.5f}; the trainer computes "
                f"{wanted:.5f}, and the tolerance is {tolerance:g}: it has other weights, or computes differently"
            )
    return ""
