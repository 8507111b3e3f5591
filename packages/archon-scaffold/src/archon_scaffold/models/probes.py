"""Finds by experiment what configurations do not contain: the formula of a norm, or a scale factor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from archon_engine.nn.norm import LayerNorm, RMSNorm
from archon_scaffold.models.architecture import NormForm

SAME = 1e-5
"""Largest difference, relative to the largest magnitude, between equivalent fp32 computations."""

_RMS_FORMS = (
    NormForm(),
    NormForm(rounds_first=False),
    NormForm(offset=1.0, rounds_first=False),
    NormForm(offset=1.0),
)


def same(found: Tensor, right: Tensor) -> bool:
    """Whether two tensors are equal up to fp32 rounding."""
    return found.shape == right.shape and bool((found - right).abs().max() <= SAME * right.abs().max())


def norm_form(module: nn.Module) -> NormForm | None:
    """The formula of a ``transformers`` norm with weights; ``None`` if it is unknown.

    Among formulas that agree in fp32, the one with the same bfloat16 rounding.
    """
    size, eps = module.weight.shape, norm_eps(module)
    if len(size) != 1 or eps is None:
        return None
    x = torch.randn(7, size[0], generator=torch.Generator().manual_seed(5)) * 3
    with torch.no_grad():
        expected = module(x)
        bias = getattr(module, "bias", None) is not None
        layer = LayerNorm(size[0], eps, bias=bias)
        layer.load_state_dict(module.state_dict())
        if same(layer(x), expected):
            return NormForm("layer", bias=bias)
        if bias:
            return None
        fitting = [form for form in _RMS_FORMS if same(_rms(form, module, eps)(x), expected)]
        short, x = copy.deepcopy(module).bfloat16(), x.bfloat16()
        alike = [form for form in fitting if torch.equal(_rms(form, short, eps)(x), short(x))]
    return (alike or fitting or [None])[0]


def norm_eps(module: nn.Module) -> float | None:
    """The epsilon of a norm, under the attribute names of ``transformers``."""
    values = (getattr(module, name, None) for name in ("variance_epsilon", "eps"))
    return next((value for value in values if isinstance(value, float)), None)


def _rms(form: NormForm, like: nn.Module, eps: float) -> RMSNorm:
    norm = RMSNorm(like.weight.shape[0], eps, offset=form.offset, rounds_first=form.rounds_first)
    norm.to(like.weight.dtype).load_state_dict({"weight": like.weight})
    return norm


def factor_of(value: float, candidates: Mapping[str, float | None]) -> str | None:
    """The expression in ``candidates`` with this value; ``None`` if there is none."""
    for expression, number in candidates.items():
        if number is not None and abs(value - number) <= SAME * max(abs(value), abs(number)):
            return expression
    return None


def ratio(found: Tensor, base: Tensor) -> float | None:
    """The scalar factor between ``base`` and ``found``; ``None`` if there is none."""
    factor = float((found * base).sum() / base.square().sum())
    return factor if same(found, base * factor) else None


def fitting_rules(
    rules: Mapping[str, Callable[[Any, int], Any]], expected: tuple[bool, ...], config: Any
) -> tuple[str, ...]:
    """The expressions in ``rules`` that give ``expected`` for the layers of a model of ``config``."""

    def values(rule: Callable[[Any, int], Any]) -> tuple[bool, ...] | None:
        try:
            return tuple(bool(rule(config, layer)) for layer in range(len(expected)))
        except (AttributeError, TypeError, IndexError):  # a configuration without the rule's entry
            return None

    return tuple(expression for expression, rule in rules.items() if values(rule) == expected)
