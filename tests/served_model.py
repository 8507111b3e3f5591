"""A trainer with a tiny model, requests, and the comparison of served completions with those of the local engine."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from archon_core import assemble, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import EngineConfig, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.rollout import GenerationConfig, GenerationRequest, RolloutConfig
from archon_core.contracts.spec import load_target
from archon_engine.options.archon import ArchonEngineConfig
from archon_lora.options import LoraOptions
from archon_rollout.local_engine import LocalEngine

PROMPTS = [(3,), (1, 2, 3, 4, 5, 6, 7), (9, 8), (4, 4, 4, 4)]


@dataclass
class AdaptedConfig(LoraOptions, ArchonEngineConfig):
    """The section of a model with archon-lora's options."""


def make_trainer(model="qwen3", *, layout="archon:d1", lora=None, **changes):
    # Wide weights, so that a random model has opinions about the next token.
    tiny = {**load_target(registry().get("model", model).tiny_config)(), "initializer_range": 0.3}
    kind = EngineConfig if lora is None else AdaptedConfig
    model = {"model_config": {**tiny, **changes}, "dtype": "float32", **(lora or {})}
    config = kind(optimizer=OptimizerConfig(lr=1e-2), **model)
    trainer = assemble(config, role="actor", layout=layout, seed=3, total_steps=10)
    trainer.initialize()
    return trainer


class NegativeLogprob:
    request = OutputRequest()

    def weights(self, batch):
        return {"sequence": float(len(batch))}

    def __call__(self, outputs, batch):
        return LossSums(terms={"sequence": -outputs["logprobs"].sum()})


def train_step(trainer):
    batch = Batch.from_sequences([torch.tensor([*prompt, 5, 6, 7, 8]) for prompt in PROMPTS])
    trainer.train_batch(batch, NegativeLogprob())


def requests(n_samples=2, **options):
    config = GenerationConfig(n_samples=n_samples, **{"max_new_tokens": 12, "temperature": 0.9, **options})
    return [GenerationRequest(p, config, tuple(range(10 * i, 10 * i + n_samples))) for i, p in enumerate(PROMPTS)]


def logprobs_of(trainer, asked, completion):
    row = torch.tensor(asked.prompt_ids + completion.token_ids)
    request = OutputRequest(("logprobs",), asked.config.temperature)
    whole = trainer.forward_batch(Batch.from_sequences([row]), request)["logprobs"]
    return whole[len(asked.prompt_ids) - 1 : -1]


def compare_with_local(engine, trainer):
    asked = requests()
    for got, expected in zip(
        engine.generate(asked), LocalEngine(RolloutConfig(), trainer=trainer).generate(asked), strict=True
    ):
        for one, other in zip(got, expected, strict=True):
            assert (one.token_ids, one.versions, one.stop_reason) == (
                other.token_ids,
                other.versions,
                other.stop_reason,
            )
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
