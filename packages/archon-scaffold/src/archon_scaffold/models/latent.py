"""Reads multi-head latent attention: DeepSeek's weights, the norms of its low-rank vectors, and its rotation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from archon_scaffold.models.architecture import Latent
from archon_scaffold.models.probes import norm_eps, norm_form
from archon_scaffold.models.tiny import is_latent
from archon_scaffold.models.twin import Twin, build_twin

OTHER_EPS = 0.003


def read_latent(twin: Twin) -> Latent | None:
    """The latent attention of a model; ``None`` if it has another one."""
    own = {name.removeprefix("self_attn.") for name in twin.names if name.startswith("self_attn.")}
    if not is_latent(twin.config):
        return None
    for low_rank in (True, False):
        for bias in (False, True):
            latent = Latent(low_rank, bias)
            if own == {f"{name}.weight" for name in latent.names} | {f"{name}.bias" for name in latent.biased}:
                return _completed(latent, twin)
    return None


def _completed(latent: Latent, twin: Twin) -> Latent | None:
    attention = twin.layers[0].self_attn
    norms = [getattr(attention, name) for name in latent.names if name.endswith("norm")]
    forms = {norm_form(norm) for norm in norms}
    if len(forms) > 1 or (form := forms.pop()) is None or form.options or form.kind != "rms":
        return None
    return Latent(latent.low_rank_queries, latent.bias, _norm_eps(twin), _interleaved(twin, attention))


def _norm_eps(twin: Twin) -> str:
    """The epsilon of the norms inside: that of the norms outside, or a constant."""
    other = build_twin({**twin.entries, "rms_norm_eps": OTHER_EPS})
    eps = norm_eps(other.layers[0].self_attn.kv_a_layernorm)
    return "a.norm_eps" if eps == OTHER_EPS else repr(eps)


def _interleaved(twin: Twin, attention: nn.Module) -> str:
    if hasattr(twin.config, "rope_interleave"):
        return "bool(config.rope_interleave)"
    # Complex numbers are pairs of neighbours.
    return str(_has_complex_positions(twin, attention))


def _has_complex_positions(twin: Twin, attention: nn.Module) -> bool:
    seen: list[object] = []

    def keep(_module: nn.Module, _args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        seen.append(kwargs.get("position_embeddings"))

    hook = attention.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        twin.module(twin.ids[None], use_cache=False)
    hook.remove()
    return isinstance(seen[0], torch.Tensor) and seen[0].is_complex()
