"""Engines with adapters, and the batches that tests of LoRA train them on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from archon_core import assemble, registry
from archon_core.contracts.batch import Batch
from archon_core.contracts.engine_config import MicroBatchSpec, OptimizerConfig
from archon_core.contracts.loss import LossSums, OutputRequest
from archon_core.contracts.spec import load_target
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_lora.options import LoraOptions

CLOSE = 1e-9
LIKE_TRANSFORMERS = 1e-5
"""transformers computes rotations in fp32 whatever the dtype of the weights."""

LENGTHS = ((4, 90, 1, 6, 3), (9, 2, 33, 1, 2, 7), (1, 18, 5))
"""Of the sequences of each step."""

MODELS = {
    "qwen3": ("qwen3", {}),
    "qwen2": ("qwen2", {}),
    "tied": ("qwen3", {"tie_word_embeddings": True}),
    "one key head": ("qwen3", {"num_key_value_heads": 1}),
    "qwen3_moe": ("qwen3_moe", {}),
    "routed": ("qwen3_moe", {"mlp_only_layers": [1]}),
    "sparse": ("qwen3_moe", {"mlp_only_layers": [], "decoder_sparse_step": 1}),
    "hf": ("hf", {}),
}


@dataclass
class Config(LoraOptions, ArchonEngineConfig):
    """The section of a model in a run with archon-lora."""


def make_engine(layout="d1", model="qwen3", *, path=None, optimizer=None, **changes):
    family, sizes = MODELS[model]
    # AdamW divides tiny gradients by their own size, which in fp32 hides what is compared over several steps.
    optimizer = optimizer or ("sgd" if family == "hf" else "adamw")
    archon = {key: changes.pop(key) for key in ("ac_mode", "pp_schedule") if key in changes}
    tiny = load_target(registry().get("model", family).tiny_config)()
    # transformers' own modules round to fp32 inside.
    dtype = changes.pop("dtype", "float32" if family == "hf" else "float64")
    config = Config(
        **{
            "use_lora": True,
            "lora_rank": 3,
            "lora_alpha": 7,
            "path": None if path is None else str(path),
            "model_config": None if path else {**tiny, "num_hidden_layers": 4, "initializer_range": 0.3, **sizes},
            "dtype": dtype,
            "optimizer": OptimizerConfig(type=optimizer, lr=1e-2),
            "mb_spec": MicroBatchSpec(n_mbs=2),
            "archon": ArchonOptions(enable_compile=False, model="hf" if family == "hf" else None, **archon),
            **changes,
        }
    )
    engine = assemble(config, layout=f"archon:{layout}", seed=5)
    engine.initialize()
    return engine


class LogLikelihoodAndEntropy:
    """Of every token."""

    request = OutputRequest(("logprobs", "entropy"), temperature=0.8)

    def weights(self, batch):
        return {"token": float(batch.n_tokens)}

    def __call__(self, outputs, micro_batch):
        return LossSums({"token": (0.3 * outputs["entropy"] - outputs["logprobs"]).sum()})


def batch_of(step, engine):
    generator = torch.Generator().manual_seed(step)
    rows = engine.hf_config.vocab_size
    batch = Batch.from_sequences([torch.randint(0, rows, (n,), generator=generator) for n in LENGTHS[step]])
    ranks = engine.data_ranks
    return batch.select(range(ranks.rank, len(batch), ranks.size))


def train(engine, steps=(0, 1, 2)):
    told = [engine.train_batch(batch_of(step, engine), LogLikelihoodAndEntropy()) for step in steps]
    return [(stats.loss, stats.gradient_norm) for stats in told]
