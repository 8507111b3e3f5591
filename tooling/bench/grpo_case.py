"""What both sides of ``grpo.py`` share: shapes, model, prompts, rewards, lengths of completions, and taking turns.

Imports torch alone, since one side runs in an environment without Archon.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

THREADS = 2
VOCABULARY = 1024
END, PAD = 0, 1
PROMPT_TOKENS = 16
LEARNING_RATE = 1e-3
CLIP_NORM = 1.0
CLIP = 0.2
REWARDED = VOCABULARY // 4
"""The reward of a completion is the share of its tokens with an id below this."""

MODEL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
    "eos_token_id": END,
    "pad_token_id": PAD,
}


@dataclass(frozen=True)
class Shape:
    """A batch, and the bars of its ratios.

    Attributes:
        prompts: of a step.
        samples: completions per prompt.
        longest: tokens of the longest completion that is allowed.
        turns: measured steps of each side, with every seed.
        median: of the lengths; ``None`` if all completions have the longest length.
        bars: contestant -> the least ratio of its time to Archon's.
        seeds: runs of each side. What small batches learn differs more from run to run than sampling explains.
    """

    prompts: int
    samples: int
    longest: int
    turns: int
    median: int | None = None
    seeds: int = 1
    bars: Mapping[str, float] = field(default_factory=dict)

    def lengths(self, step: int) -> Tensor:
        """Tokens of every completion of ``step``, with its end token: int64 [prompts, samples]."""
        size = (self.prompts, self.samples)
        if self.median is None:
            return torch.full(size, self.longest)
        generator = torch.Generator().manual_seed(step)
        drawn = torch.exp(math.log(self.median) + torch.randn(size, generator=generator, dtype=torch.float64) * 0.8)
        return drawn.clamp(4, self.longest).long()


TRL = "trl"
FLOOR = "products alone"

SHAPES = {
    "short": Shape(4, 8, 16, turns=15, seeds=4, bars={TRL: 1.25, FLOOR: 0.85}),
    "long": Shape(16, 8, 64, turns=5, bars={TRL: 1.25, FLOOR: 0.85}),
    "ragged": Shape(16, 8, 256, turns=5, median=48, bars={TRL: 1.8}),
}


def prompt_texts(shape: Shape) -> list[str]:
    """Prompts of random tokens, the same in every run and every step."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, VOCABULARY, (shape.prompts, PROMPT_TOKENS), generator=generator)
    return [" ".join(f"w{token}" for token in row) for row in ids.tolist()]


def reward_of(completion: str) -> float:
    """The share of rewarded tokens of a completion's text."""
    tokens = [int(word[1:]) for word in completion.split() if word.startswith("w")]
    return sum(token < REWARDED for token in tokens) / max(len(tokens), 1)


def end_at(lengths: Tensor, n_generated: int | Tensor, logits: Tensor) -> Tensor:
    """``logits`` [R, V] that force the end token where a completion has its length, and exclude it before.

    Args:
        lengths: int64 [R].
        n_generated: tokens of the completions so far, int64 [R] or one number.
    """
    logits[:, END] = -torch.inf
    last = lengths == n_generated + 1
    if last.any():
        logits[last] = -torch.inf
        logits[last, END] = 0.0
    return logits


def save_model(folder: Path) -> None:
    """Write random weights, and a tokenizer with a word per token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**MODEL)).save_pretrained(folder)
    special = {"<end>": END, "<pad>": PAD}
    vocabulary = special | {f"w{token}": token for token in range(len(special), VOCABULARY)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"eos_token": "<end>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **named).save_pretrained(folder)


class Turns:
    """A worker's side of taking turns: it waits for its turn before every step.

    Reports go to the file that was standard output at the start; the trainer's own output goes to standard error.
    """

    def __init__(self) -> None:
        self._reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        torch.set_num_threads(THREADS)

    def next(self, report: Mapping[str, Any]) -> None:
        """Report the step before, and wait. Ends the process when no turn is left."""
        self._reports.write(json.dumps(report) + "\n")
        self._reports.flush()
        if not sys.stdin.readline():
            os._exit(0)
