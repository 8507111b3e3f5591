"""What is trained in a storm: a tiny model, prompts that depend on the step, and a step of training on completions.

The trainer's ranks and the repetition in one process share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from archon_core import assemble
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.rollout import Completion, GenerationConfig, GenerationRequest
from archon_core.serving.manifest import plan_buckets
from weather.options import BUCKETS, StormOptions
from weather.records import Line

DTYPE = "float64"
"""Sharp: log-probabilities of the right weights agree to 1e-12, those of any other version do not."""

MODEL = {
    "model_type": "qwen3",
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # a random model with opinions about the next token
    "tie_word_embeddings": False,
}
BUCKET_BYTES = 12 * 1024
N_PROMPTS, N_SAMPLES, NEW_TOKENS = 3, 2, 10
LONG_TOKENS = 30


def build_trainer(options: StormOptions, *, layout: str) -> TrainEngine:
    """The trainer before its first step; the same for every layout."""
    config = EngineConfig(model_config=MODEL, dtype=DTYPE, optimizer=OptimizerConfig(lr=1e-2))
    trainer = assemble(config, role="actor", layout=layout, seed=options.seed, total_steps=options.versions)
    trainer.initialize()
    assert len(plan_buckets(trainer.weight_manifest().tensors, BUCKET_BYTES)) == BUCKETS
    return trainer


class WeightedLogprobs:
    """The objective: log-probabilities of the completions, weighted with their advantages."""

    request = OutputRequest()

    def weights(self, batch):
        return {"sequence": float(len(batch))}

    def __call__(self, outputs, batch):
        return LossSums(terms={"sequence": -(outputs["logprobs"] * batch.token_fields["advantages"]).sum()})


def train_on(trainer: TrainEngine, rows: Sequence[Line]) -> None:
    """One step on recorded completions."""
    advantages = [
        [0.0] * (len(row["prompt_ids"]) - 1) + [row["advantage"]] * len(row["token_ids"]) + [0.0] for row in rows
    ]
    batch = Batch.from_sequences(
        [[*row["prompt_ids"], *row["token_ids"]] for row in rows],
        token_fields={"advantages": [torch.tensor(values, dtype=torch.float64) for values in advantages]},
    )
    trainer.train_batch(batch, WeightedLogprobs())


def requests_of(version: int, *, seed: int) -> list[GenerationRequest]:
    """The prompts of a step."""
    config = GenerationConfig(n_samples=N_SAMPLES, max_new_tokens=NEW_TOKENS)
    return [
        GenerationRequest(
            (1 + (version + n) % 30, 2 + n, 3),
            config,
            tuple(seed * 100_000 + version * 100 + n * 10 + k for k in range(N_SAMPLES)),
        )
        for n in range(N_PROMPTS)
    ]


def row_of(request: GenerationRequest, completion: Completion) -> dict[str, Any]:
    """A completion as it is recorded."""
    return {
        "prompt_ids": request.prompt_ids,
        "token_ids": completion.token_ids,
        "logprobs": completion.logprobs,
        "versions": completion.versions,
    }
