"""Builds micro-batches whose sequences share prefixes: packs the tree, and asks the head for every next token once.

Losses see the sequences and never the tree: ``archon_core.contracts.batch.Expansion`` repeats the outputs of shared
tokens before the loss, and backward sums their gradients.

The prediction of a token depends on the path to it alone, so there is one per token of the tree that has a predecessor.
The last shared token makes several predictions, one for each token that follows it.

Legend: T tokens of the pack, N tokens of all sequences, P predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from archon_core.contracts.batch import NO_TARGET, ROUTED_EXPERTS, Batch, Expansion, MicroBatch
from archon_core.contracts.loss import OutputRequest
from archon_core.contracts.packed import ContextRanks, HeadInputs, PackedSequences, SharedPrefixes
from archon_engine.data.micro_batch import PADDING_ID, padded_length
from archon_engine.data.prefix_tree import NO_TOKEN, Integers, PrefixTree, build_prefix_tree, token_keys
from archon_engine.nn.ulysses import ContextParallel

NO_PREDICTION = -1


def tree_of(batch: Batch, *, replays_routing: bool = False) -> PrefixTree:
    """The prefix tree of ``batch``. Waits for the device.

    Args:
        batch: the sequences.
        replays_routing: tokens that were routed to other experts are not the same.
    """
    experts = batch.token_fields.get(ROUTED_EXPERTS) if replays_routing else None
    ids = batch.input_ids.cpu().numpy()
    return build_prefix_tree(token_keys(ids, None if experts is None else experts.cpu().numpy()), batch.lengths)


def build_tree_micro_batch(
    selected: Batch,
    indices: Sequence[int],
    tree: PrefixTree,
    request: OutputRequest,
    *,
    multiple: int = 1,
    at_least: int = 0,
    context: ContextParallel | None = None,
    replays_routing: bool = False,
) -> MicroBatch:
    """``micro_batch.build_micro_batch`` for sequences that share prefixes.

    Args:
        selected: the sequences at ``indices``.
        tree: their tree, which shares some token.
    """
    device = selected.input_ids.device
    length = padded_length(tree.n_tokens, multiple=multiple, at_least=at_least)
    padding = length - tree.n_tokens
    source = _on(device, tree.source)
    input_ids = functional.pad(selected.input_ids[source], (0, padding), value=PADDING_ID)
    packed = pack_tree(tree, selected.lengths, padding, device)
    context = None if context is None else context.deal(packed)
    predictions = plan_predictions(tree, _predicted(selected, tree, request), length, context)
    places, targets = _on(device, predictions.places), _on(device, predictions.targets)
    head = HeadInputs(
        outputs=request.names,
        targets=torch.where(targets >= 0, input_ids[targets.clamp(min=0)], NO_TARGET),
        temperature=request.temperature,
        places=places,
    )
    packed = replace(packed, head=head)
    if replays_routing and ROUTED_EXPERTS in selected.token_fields:
        experts = selected.token_fields[ROUTED_EXPERTS][source]
        # Padding is routed to no expert, whatever its values are.
        packed = replace(packed, experts=functional.pad(experts, (0, 0, 0, 0, 0, padding)))
    shared = packed.shared
    assert shared is not None, "a tree was packed"
    if context is not None:
        input_ids, packed = context.local_tokens(input_ids), packed.cut(context)
    expansion = Expansion(shared.token_of, _on(device, predictions.of_tokens))
    return MicroBatch(selected, tuple(indices), input_ids, packed, expansion)


def pack_tree(
    tree: PrefixTree, lengths: Sequence[int], padding: int = 0, device: torch.device | str = "cpu"
) -> PackedSequences:
    """The pack of a tree: its segments, then padding as a segment that continues nothing.

    Args:
        tree: the tree.
        lengths: tokens per sequence.
        padding: number of tokens.
        device: of the tensors.
    """
    n, total = tree.n_tokens, tree.n_tokens + padding
    segments, paths = list(tree.segments), list(tree.paths)
    depths, parents = tree.depths, tree.parents
    if padding:
        segments.append(padding)
        paths.append(np.arange(n, total))
        depths = np.concatenate((depths, np.arange(padding)))
        parents = (*parents, NO_TOKEN)
    key_lengths = tuple(len(path) for path in paths)
    shared = SharedPrefixes(
        key_tokens=_on(device, np.concatenate(paths)),
        key_lengths=key_lengths,
        cu_keys=_starts(key_lengths, device),
        segments=tuple(segments),
        parents=parents,
        token_of=_on(device, tree.token_of),
        sequence_of=_on(device, np.repeat(np.arange(len(lengths)), lengths)),
        n_sequences=len(lengths),
    )
    return PackedSequences(
        cu_seqlens=_starts(segments, device),
        max_seqlen=max(key_lengths),
        positions=_on(device, depths),
        lengths=shared.segments,
        n_padding=padding,
        shared=shared,
    )


@dataclass(frozen=True)
class Predictions:
    """The predictions that a head makes on this rank, and where each token of the sequences finds its own.

    Attributes:
        places: [P], the place of the token that predicts, among this rank's tokens.
        targets: [P], the token of the tree that is predicted; ``NO_TOKEN`` for a prediction that only fills up.
        of_tokens: [N], for every token of the sequences the place of its prediction among those of all context ranks,
            in rank order; ``NO_PREDICTION`` for none.
    """

    places: Integers
    targets: Integers
    of_tokens: Integers


def plan_predictions(
    tree: PrefixTree, predicted: Integers, n_places: int, context: ContextRanks | None = None
) -> Predictions:
    """Choose the predictions of a pack, each by the context rank that holds the token before it.

    Every context rank makes equally many, since their outputs are gathered.

    Args:
        tree: the tree.
        predicted: [N], for every token of the sequences the token of the tree that it predicts, or ``NO_TOKEN``.
        n_places: tokens of the padded pack.
        context: the context ranks.
    """
    targets = np.unique(predicted[predicted >= 0])
    places = tree.predecessor[targets]
    size, own = (1, 0) if context is None else (context.size, context.rank)
    part = n_places // size
    if context is not None:
        order = np.concatenate([np.arange(held.start, held.stop) for held in context.rank_order(n_places)])
        # The place of a token in the order of the ranks.
        in_order = np.empty_like(order)
        in_order[order] = np.arange(n_places)
        places = in_order[places]
    rank_of = places // part
    in_ranks = np.argsort(rank_of, kind="stable")
    counts = np.bincount(rank_of, minlength=size)
    most = max(1, int(counts.max()))
    first = np.concatenate(([0], np.cumsum(counts)))
    of_target = np.full(tree.n_tokens + 1, NO_PREDICTION)  # the last place is that of NO_TOKEN
    of_target[targets[in_ranks]] = np.arange(len(targets)) + np.repeat(np.arange(size) * most - first[:-1], counts)
    mine = in_ranks[first[own] : first[own + 1]]
    fill = most - len(mine)
    return Predictions(
        np.pad(places[mine] - own * part, (0, fill)),
        np.pad(targets[mine], (0, fill), constant_values=NO_TOKEN),
        of_target[predicted],
    )


def _predicted(selected: Batch, tree: PrefixTree, request: OutputRequest) -> Integers:
    """[N], the token of the tree that each token of the sequences predicts and the request needs; ``NO_TOKEN`` for
    none."""
    predicted = np.roll(tree.token_of, -1)
    predicted[np.cumsum(selected.lengths) - 1] = NO_TOKEN
    if request.where is not None:
        predicted[~selected.token_fields[request.where].cpu().numpy()] = NO_TOKEN
    return predicted


def _starts(lengths: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32).to(device)


def _on(device: torch.device | str, values: Integers) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
