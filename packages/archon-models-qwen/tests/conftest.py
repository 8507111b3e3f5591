"""Models in pairs: transformers' and ours with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from archon_core.models.box import Box
from archon_core.models.hf_config import load_hf_config
from archon_core.models.parameter_names import named_weights, weight_shapes
from archon_core.models.weight_conversion import fill_ours, read_from
from archon_core.models.weight_map import ResolvedMap
from archon_core.nn.packed import HeadInputs, PackedSequences
from archon_models_qwen.arguments import QwenArguments
from archon_models_qwen.decoder import QwenDecoder
from archon_models_qwen.weight_map import weight_map


@dataclass(frozen=True)
class Pair:
    """The same model twice, in training mode but without dropout."""

    config: Any
    hf: nn.Module
    ours: QwenDecoder
    weights: ResolvedMap

    def logits(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        packed = PackedSequences.from_lengths(lengths, head=HeadInputs(outputs=("logits",)))
        return self.ours(ids, packed)["logits"]

    def hf_outputs_one_by_one(self, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
        outputs = []
        for sequence in ids.split(lengths):
            # transformers' dynamic rotation remembers the longest sequence that it has seen; each starts anew.
            self.hf.model.rotary_emb = type(self.hf.model.rotary_emb)(self.config)
            outputs.append(self.hf(sequence[None]).logits[0])
        return torch.cat(outputs)


def _make_pair(
    entries: dict[str, Any], *, critic: bool = False, attention: str = "eager", dtype: torch.dtype = torch.float32
) -> Pair:
    """Weights are drawn wide, so that logits are of order 1 and every part of the model matters."""
    config = load_hf_config(entries)
    if critic:
        config.num_labels = 1
    auto = AutoModelForSequenceClassification if critic else AutoModelForCausalLM
    hf = auto.from_config(config, attn_implementation=attention).to(dtype)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.normal_(0, 0.3 if parameter.ndim > 1 else 1.0)
    arguments = QwenArguments.from_hf_config(config, critic=critic)
    ours = QwenDecoder(arguments).to(dtype)
    weights = weight_map(arguments).resolve(weight_shapes(ours))
    read = read_from(hf.state_dict())
    with torch.no_grad():
        for name, weight in named_weights(ours).items():
            fill_ours(weight, name, Box.whole(tuple(weight.shape)), weights, read)
    return Pair(config, hf, ours, weights)


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """``make_pair(entries, critic=False, attention="eager", dtype=torch.float32) -> Pair``."""
    return _make_pair


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
