"""Models in pairs: transformers' and ours with the same random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from archon_core.contracts.model import LoadedModel
from archon_core.contracts.moe import MoESettings
from archon_core.contracts.packed import HeadInputs, PackedSequences
from archon_core.models.box import Box
from archon_core.models.weight_map import ResolvedMap
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.key_report import form_of
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_engine.models.weight_conversion import fill_ours, read_from
from archon_engine.nn.swiglu import activation
from archon_models_qwen.plugin import archon_models


class _PlainRouter(nn.Module):
    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(settings.n_experts, settings.hidden_size))


class _PlainExperts(nn.Module):
    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        outward = (settings.n_experts, settings.intermediate_size, settings.hidden_size)
        self.gate_proj = nn.Parameter(torch.empty(outward))
        self.up_proj = nn.Parameter(torch.empty(outward))
        self.down_proj = nn.Parameter(torch.empty(outward[0], outward[2], outward[1]))


class _PlainBlock(nn.Module):
    """A block of ``archon_core.contracts.moe`` in which every expert computes every token, most of it for nothing."""

    def __init__(self, settings: MoESettings) -> None:
        super().__init__()
        self.settings = settings
        self.router = _PlainRouter(settings)
        self.experts = _PlainExperts(settings)
        self.act = activation(settings.hidden_act)

    def forward(self, x: Tensor, packed: PackedSequences) -> Tensor:
        probabilities = (x @ self.router.weight.T).softmax(-1)
        best, chosen = probabilities.topk(self.settings.top_k)
        if self.settings.norm_topk_prob:
            best = best / best.sum(-1, keepdim=True)
        weights = torch.zeros_like(probabilities).scatter(-1, chosen, best)
        e = self.experts
        inner = self.act(torch.einsum("th,efh->etf", x, e.gate_proj)) * torch.einsum("th,efh->etf", x, e.up_proj)
        return torch.einsum("etf,ehf,te->th", inner, e.down_proj, weights)


class PlainBuilder:
    """A stand-in for the package that builds blocks of experts."""

    def build(self, settings: MoESettings, layer: int) -> nn.Module:
        return _PlainBlock(settings)


def loaded_model(model_type: str) -> LoadedModel:
    """The parts of a family."""
    return next(spec for spec in archon_models() if model_type in (spec.name, *spec.model_types)).load()


def build(model: LoadedModel, arguments: Any, stage: Any = None) -> nn.Module:
    """The module of a family."""
    return model.build(arguments, stage, experts=PlainBuilder())


@dataclass(frozen=True)
class Pair:
    """The same model twice, in training mode but without dropout."""

    config: Any
    hf: nn.Module
    ours: nn.Module
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
    model = loaded_model(config.model_type)
    arguments = model.arguments.from_hf_config(config, critic=critic)
    ours = build(model, arguments).to(dtype)
    weights = model.weight_map(arguments).resolve(weight_shapes(ours))
    in_memory = hf.state_dict()
    as_there, _ = form_of({name: tuple(tensor.shape) for name, tensor in in_memory.items()}, weights)
    read = read_from(in_memory)
    with torch.no_grad():
        for name, weight in named_weights(ours).items():
            fill_ours(weight, name, Box.whole(tuple(weight.shape)), as_there, read)
    return Pair(config, hf, ours, weights)


@pytest.fixture(scope="session")
def family() -> Callable[[str], tuple[LoadedModel, Callable[..., nn.Module]]]:
    """``family(model_type)``: the parts of a family, and what builds its module from arguments and a stage."""
    return lambda model_type: (loaded_model(model_type), partial(build, loaded_model(model_type)))


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Pair]:
    """``make_pair(entries, critic=False, attention="eager", dtype=torch.float32) -> Pair``."""
    return _make_pair


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
