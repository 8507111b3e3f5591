"""``BuiltModel``: a model built from its plugin's spec on one process, as the checks use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.contracts.model import LoadedModel
from archon_core.contracts.packed import HeadInputs, OutputName, PackedSequences
from archon_core.models.weight_map import ResolvedMap
from archon_core.plugins import ModelSpec
from archon_engine.models.hf_config import load_hf_config
from archon_engine.models.initialize import build_module
from archon_engine.models.parameter_names import named_weights, weight_shapes
from archon_testing.cases import Case
from archon_testing.compare import magnitude
from archon_testing.engines import fill_choice_biases, fill_weights, starting_points
from archon_testing.verdicts import LIMITS


@dataclass(frozen=True)
class BuiltModel:
    """A model with weights.

    Attributes:
        case: what was built.
        spec: by which plugin.
        loaded: the spec's parts.
        hf_config: the configuration, as ``transformers`` reads it.
        arguments: the model's own.
        module: in float64.
        weights: the weight map, resolved.
    """

    case: Case
    spec: ModelSpec
    loaded: LoadedModel
    hf_config: Any
    arguments: Any
    module: nn.Module
    weights: ResolvedMap

    @property
    def limit(self) -> float:
        """The largest relative error of equal values: float64 computation, in which modules may round to fp32."""
        return LIMITS["float32" if self.spec.rounds_inside else "float64"]

    @property
    def named(self) -> Mapping[str, Tensor]:
        """Our weights by name."""
        return named_weights(self.module)

    def run(self, ids: Tensor, lengths: tuple[int, ...], *names: OutputName) -> dict[OutputName, Tensor]:
        """Outputs of the head for packed sequences [T]."""
        targets = torch.roll(ids, -1)
        packed = PackedSequences.from_lengths(lengths, head=HeadInputs(outputs=names, targets=targets))
        return self.module(ids, packed)

    def ids(self, n_tokens: int) -> Tensor:
        """Token ids, the same every time."""
        return torch.randint(0, self.hf_config.vocab_size, (n_tokens,), generator=torch.Generator().manual_seed(3))


def build_model(spec: ModelSpec, case: Case) -> BuiltModel:
    """Build the model and fill its weights. Raises ArchonError from the spec's parts."""
    loaded = spec.load()
    hf_config = load_hf_config(case.model_config)
    arguments = loaded.arguments.from_hf_config(hf_config, critic=case.critic)
    module = build_module(spec, arguments).to(torch.float64)
    fill_weights(dict(module.named_parameters()), case.seed, starts=starting_points(module))
    fill_choice_biases(named_weights(module), case.seed)
    weights = loaded.weight_map(arguments).resolve(weight_shapes(module))
    return BuiltModel(case, spec, loaded, hf_config, arguments, module, weights)


def require(condition: object, message: str) -> None:
    """Raise AssertionError with ``message`` unless ``condition``; pytest shows no values for asserts of libraries."""
    if not condition:
        raise AssertionError(message)


def distance(found: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest magnitude of ``right``; infinite for other shapes."""
    if found.shape != right.shape:
        return float("inf")
    found, right = found.detach().double(), right.detach().double()
    difference, scale = magnitude(found - right), magnitude(right)
    return difference / scale if scale else difference
