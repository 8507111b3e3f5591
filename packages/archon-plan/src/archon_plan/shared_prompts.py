"""Samples of one prompt that share its tokens in a micro-batch (``enable_tree_training``, docs/shared-prefixes.md).

n samples of R tokens after a prompt of P are a tree of P + n R tokens. Each token sees the keys of its path, so the
first sample has as many pairs of a query and a key as without sharing, and further ones leave out those of the prompt.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_plan.setting import Tokens

if TYPE_CHECKING:
    from archon_plan.parts import Sequences

MOST_TOKENS = 2**20
"""Largest tree to build for the assignment of its sequences; longer sequences are measured in several tokens."""


def tree_bins(number: int, sequences: Sequences, spec: MicroBatchSpec) -> tuple[tuple[int, ...], ...]:
    """The micro-batches of a data rank: indices of its sequences, neighbours of which share prompts.

    Args:
        number: sequences of the data rank.
        sequences: their lengths, and how many share a prompt.
        spec: the split into micro-batches.
    """
    lengths = sequences.prompt, sequences.length - sequences.prompt
    return _tree_bins(number, *lengths, sequences.samples, tuple(asdict(spec).items()), MOST_TOKENS)


# An engine is planned again for every nearby layout and for each pass of a run.
@lru_cache(maxsize=64)
def _tree_bins(
    number: int, prompt: int, completion: int, samples: float, options: tuple[tuple[str, Any], ...], most: int
) -> tuple[tuple[int, ...], ...]:
    # Imported here: only plans with shared prompts need arrays.
    import numpy as np

    from archon_engine.data.prefix_tree import build_prefix_tree
    from archon_engine.data.tree_packing import plan_tree_micro_batches

    spec = MicroBatchSpec(**dict(options))
    unit = max(math.gcd(prompt, completion), math.ceil(number * (prompt + completion) / most))
    in_prompt, in_completion = math.ceil(prompt / unit), math.ceil(completion / unit)
    length = in_prompt + in_completion
    rows = np.arange(number)[:, None]
    prompts = np.array([_prompt_of(row, samples) for row in range(number)])[:, None]
    # Tokens of a prompt are its number, tokens of a completion that of the sequence.
    of_prompts = np.broadcast_to(prompts, (number, in_prompt))
    of_completions = np.broadcast_to(number + rows, (number, in_completion))
    tree = build_prefix_tree(np.concatenate([of_prompts, of_completions], axis=1).reshape(-1), [length] * number)
    limit = spec.max_tokens_per_mb
    bins = plan_tree_micro_batches(
        tree,
        [length] * number,
        n_mbs=spec.n_mbs,
        max_tokens_per_mb=None if limit is None else max(limit // unit, length * spec.granularity),
        granularity=spec.granularity,
        n_mbs_divisor=spec.n_mbs_divisor,
        algorithm=spec.packing_algorithm,  # type: ignore[arg-type]
    )
    return tuple(map(tuple, bins))


def _prompt_of(index: int, samples: float) -> int:
    """The prompt of a sequence. With 1.4 samples per prompt, some prompts have two neighbours and others one."""
    return int((index + 0.5) / samples)


def n_prompts(sequences: Sequences, members: Collection[int]) -> int:
    """The number of prompts of the sequences ``members``."""
    return len({_prompt_of(index, sequences.samples) for index in members})


def tree_tokens(sequences: Sequences, members: Collection[int]) -> int:
    """Tokens of a micro-batch with the sequences ``members``, each prompt counted once."""
    completions = len(members) * (sequences.length - sequences.prompt)
    return n_prompts(sequences, members) * sequences.prompt + completions


def samples_together(prompts: int, samples: int, drawn: int) -> float:
    """How many samples of a prompt are together in a mini-batch, on average over its prompts.

    Args:
        prompts: of a batch.
        samples: of each prompt.
        drawn: sequences of a mini-batch, which is drawn at random. A prompt is absent with probability
            C(N - n, k) / C(N, k), for k of N sequences and n samples.
    """
    whole = prompts * samples
    if drawn >= whole:
        return samples
    absent = math.prod((whole - drawn - sample) / (whole - sample) for sample in range(samples))
    # Rounded, so that a sample that is alone counts as 1.
    return max(1.0, round(drawn / (prompts * (1 - absent)), 6))


def with_prompts(sequences: Sequences, prompts: int, samples: int, tokens: int) -> Sequences:
    """``sequences`` of a step on a batch of samples, or of a mini-batch that is drawn from it.

    Args:
        sequences: of the step.
        prompts: of the batch.
        samples: of each prompt.
        tokens: of a prompt.
    """
    together = samples_together(prompts, samples, sequences.number or prompts * samples)
    return replace(sequences, prompt=min(tokens, sequences.length - 1), samples=together)


def path_keys(tokens: Tokens) -> float:
    """Keys along the paths of a tree over its tokens, which attention gathers; 0 if sequences share nothing."""
    if tokens.shared is None:
        return 0.0
    prompt, samples = tokens.shared.tokens, tokens.shared.samples
    return samples * tokens.sequence / (prompt + samples * (tokens.sequence - prompt))


def apart(tokens: Tokens) -> Tokens:
    """As many tokens in sequences that share nothing: each shorter by what it does not have alone."""
    if tokens.shared is None:
        return tokens
    prompt, samples = tokens.shared.tokens, tokens.shared.samples
    return replace(tokens, sequence=max(1, round(tokens.sequence - prompt + prompt / samples)), shared=None)
