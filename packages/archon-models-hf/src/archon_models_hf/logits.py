"""What a language model of transformers does with the logits of its head, found by calling it with a body that returns
chosen numbers and a head that passes them on."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from archon_core.errors import ModelError
from archon_engine.nn.head import LogitForm
from archon_models_hf.transformers_model import ADVICE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SMALL, _LARGE = 1e-4, 1e9
_AGREES = 1e-6
"""Relative: both are computed in float64."""


class _Outputs:
    """What a base model returns: hidden states, and nothing else that somebody may look for."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, place: int | slice) -> Any:
        return (self.last_hidden_state,)[place]


class _Body(nn.Module):
    """A base model whose last hidden state is given."""

    def __init__(self, hidden: Tensor, config: Any) -> None:
        super().__init__()
        self.hidden = hidden
        self.config = config

    def forward(self, *_: Any, **__: Any) -> _Outputs:
        return _Outputs(self.hidden)


def logit_form(lm: PreTrainedModel, *, body: str, head: str) -> LogitForm:
    """The scale and softcap that ``lm`` applies to its head's output.

    Args:
        lm: a causal language model; not modified.
        body: name of its base model.
        head: name of its output projection.

    Raises:
        ModelError: it applies another function, or its forward pass fails.
    """
    values = torch.cat([torch.linspace(-60.0, 60.0, 41), torch.tensor([_SMALL, -_SMALL, _LARGE])]).double()
    hidden = values.view(1, -1, 1)
    twin = copy.copy(lm)
    twin.__dict__ = {**lm.__dict__, "_modules": {**lm._modules, body: _Body(hidden, lm.config), head: nn.Identity()}}
    try:
        found = twin(input_ids=torch.zeros(1, len(values), dtype=torch.int64), use_cache=False).logits
    except Exception as error:  # of any code of transformers
        raise _refusal(lm, f"it could not be examined ({type(error).__name__}: {error})") from error
    if found.shape != hidden.shape:
        raise _refusal(lm, f"it returns logits {tuple(found.shape)} where its head returns {tuple(hidden.shape)}")
    found = found.double().flatten()
    scale = float(found[-3] / _SMALL)
    for softcap in (None, float(found[-1])):
        form = LogitForm(scale, softcap)
        if softcap != 0.0 and torch.allclose(form.apply(values), found, rtol=_AGREES, atol=_AGREES * abs(scale)):
            return LogitForm(_rounded(scale), None if softcap is None else _rounded(softcap))
    raise _refusal(lm, "it changes its head's logits by more than a scale and a softcap")


def _rounded(number: float) -> float:
    """Without what rounding in float32 inside of the module added to the configuration's number."""
    return float(f"{number:.7g}")


def _refusal(lm: PreTrainedModel, found: str) -> ModelError:
    return ModelError(
        f"{type(lm).__name__} of transformers: found a forward pass after the head that archon-models-hf cannot "
        f"express: {found}; allowed are logits that are scaled or softly capped; {ADVICE}"
    )
