"""Models in pairs: transformers' own, and the same weights in our decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from archon_core.models.box import Box
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.models.weight_conversion import fill_ours, read_from
from archon_models_hf.arguments import HfArguments
from archon_models_hf.decoder import HfDecoder
from archon_models_hf.weight_map import weight_map

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}


@pytest.fixture(scope="session")
def arguments_of() -> Callable[..., HfArguments]:
    """``arguments_of(model_type, critic=False, **entries)``."""

    def make(model_type: str, *, critic: bool = False, **entries: Any) -> HfArguments:
        config = load_hf_config({"model_type": model_type, **SIZES, **entries})
        return HfArguments.from_hf_config(config, critic=critic)

    return make


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., tuple[nn.Module, HfDecoder]]:
    """``make_pair(model_type, **entries)``: transformers' model and ours."""

    def make(model_type: str, **entries: Any) -> tuple[nn.Module, HfDecoder]:
        config = load_hf_config({"model_type": model_type, **SIZES, **entries})
        theirs = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.normal_(0, 0.3 if parameter.ndim > 1 else 1.0)
        arguments = HfArguments.from_hf_config(config, critic=False)
        ours = HfDecoder(arguments)
        in_memory = theirs.state_dict()
        weights = weight_map(arguments).resolve(weight_shapes(ours))
        form, report = form_of({name: tuple(w.shape) for name, w in in_memory.items()}, weights)
        assert report.fits, report.lines()
        with torch.no_grad():
            for name, weight in named_weights(ours).items():
                fill_ours(weight, name, Box.whole(tuple(weight.shape)), form, read_from(in_memory))
        return theirs, ours

    return make


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
