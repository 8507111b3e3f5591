"""Builds micro-batches: selects sequences, adds padding, and takes this rank's part of the tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from archon_core.contracts.batch import NO_TARGET, ROUTED_EXPERTS, Batch, MicroBatch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_engine.nn.ulysses import ContextParallel

PADDING_ID = 0


def padded_length(n_tokens: int, *, multiple: int = 1, at_least: int = 0) -> int:
    """The length of a pack with its padding: a multiple of ``multiple``, not less than ``at_least``, and not 0."""
    return math.ceil(max(n_tokens, at_least, 1) / multiple) * multiple


def build_micro_batch(
    batch: Batch,
    indices: Sequence[int],
    request: OutputRequest,
    *,
    multiple: int = 1,
    at_least: int = 0,
    context: ContextParallel | None = None,
    replays_routing: bool = False,
) -> MicroBatch:
    """Select ``indices`` of ``batch``, append padding, and take this rank's part of the tokens.

    Args:
        batch: the whole batch, on the device where the model runs.
        indices: the sequences of this micro-batch; if empty, it consists of padding only.
        request: the outputs that the head computes; the field that ``request.where`` names must be in ``batch``.
        multiple: the padded length is a multiple of this; with context ranks, a multiple of theirs
            (``ContextParallel.multiple``).
        at_least: minimum padded length.
        context: the context ranks, among which tokens are divided; ``None`` without context parallelism.
        replays_routing: route tokens to the experts in the field ``ROUTED_EXPERTS`` [T, layers, top_k], if any.

    Returns:
        ``input_ids`` [T] and ``packed`` are padded and divided; ``batch`` holds the sequences without padding.
    """
    selected = batch.select(indices)
    padding = padded_length(selected.n_tokens, multiple=multiple, at_least=at_least) - selected.n_tokens
    lengths = selected.lengths + ((padding,) if padding else ())
    scored = selected.targets
    if request.where is not None:
        scored = torch.where(selected.token_fields[request.where], scored, NO_TARGET)
    targets = torch.nn.functional.pad(scored, (0, padding), value=NO_TARGET)
    head = HeadInputs(outputs=request.names, targets=targets, temperature=request.temperature)
    if request.where is not None and {"logprobs", "entropy"} & set(request.names):
        head = head.with_scored()
    input_ids = torch.nn.functional.pad(selected.input_ids, (0, padding), value=PADDING_ID)
    packed = replace(PackedSequences.from_lengths(lengths, batch.input_ids.device, head), n_padding=padding)
    if replays_routing and ROUTED_EXPERTS in selected.token_fields:
        # Padding is routed to no expert, whatever its values are.
        experts = torch.nn.functional.pad(selected.token_fields[ROUTED_EXPERTS], (0, 0, 0, 0, 0, padding))
        packed = replace(packed, experts=experts)
    if context is not None:
        context = context.deal(packed)
        input_ids, packed = context.local_tokens(input_ids), packed.cut(context)
    return MicroBatch(batch=selected, indices=tuple(indices), input_ids=input_ids, packed=packed)
