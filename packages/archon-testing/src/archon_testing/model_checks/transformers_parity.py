"""Compares logits, values and gradients with ``transformers``, which gets one sequence at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from archon_core.models.weight_map import ResolvedMap
from archon_engine.models.key_report import form_of
from archon_engine.models.weight_conversion import assemble_hf, copy_from
from archon_testing.model_checks.built import BuiltModel, distance, require

LENGTHS = (9, 1, 14, 5)


def hf_twin(model: BuiltModel, hf_class: Any) -> tuple[nn.Module, nn.Parameter | None, ResolvedMap]:
    """``transformers``' language model with the same weights, in float64, the value head of a critic, and the form of
    the weight map that it has in memory.

    Raises:
        AssertionError: the weight map gives other names or shapes than ``transformers`` has.
    """
    from transformers import AutoModelForCausalLM

    make = hf_class._from_config if hf_class is not None else AutoModelForCausalLM.from_config
    # Of experts the plain implementation: others have no float64.
    hf = make(model.hf_config, attn_implementation="eager", experts_implementation="eager").to(torch.float64)
    shapes = {name: tuple(tensor.shape) for name, tensor in hf.state_dict().items()}
    weights, _ = form_of(shapes, model.weights)
    state = {name: assemble_hf(name, weights, copy_from(model.named), torch.float64) for name in weights.hf_shapes}
    lacking = sorted(weights.initialised_if_missing)
    value_head = nn.Parameter(state.pop(lacking[0])) if model.case.critic and lacking else None
    wrong = [
        f"{name}: {tuple(t.shape)}, there {shapes.get(name)}"
        for name, t in state.items()
        if shapes.get(name) != t.shape
    ]
    require(not wrong, "the weight map makes tensors that transformers has not:\n  " + "\n  ".join(wrong))
    missing, _ = hf.load_state_dict(state, strict=False)
    stored = {name for name, parameter in hf.named_parameters()}
    lost = sorted((set(missing) & stored) - ({"lm_head.weight"} if model.case.critic else set()))
    require(not lost, f"the weight map has no rule for weights of transformers: {', '.join(lost)}")
    return hf, value_head, weights


def check_parity(model: BuiltModel, *, hf_class: Any, tolerance: float) -> None:
    """Compare outputs and all gradients of a weighted sum of them."""
    hf, value_head, weights = hf_twin(model, hf_class)
    ids = model.ids(sum(LENGTHS))
    name = "values" if model.case.critic else "logits"
    found = model.run(ids, LENGTHS, name)[name]
    right = torch.cat([_expected(hf, value_head, sequence) for sequence in ids.split(LENGTHS)])
    error = distance(found, right)
    require(
        error <= tolerance,
        f"{name} differ from transformers' by {error:.1e} of the largest (allowed: {tolerance:.0e}); compare the "
        "modules' outputs one after the other: embedding, first attention, first feed-forward block",
    )
    upstream = torch.randn(right.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (found * upstream).sum().backward()
    (right * upstream).sum().backward()
    theirs = {name: p.grad for name, p in hf.named_parameters() if name in weights.hf_shapes}
    if value_head is not None:
        theirs[sorted(weights.initialised_if_missing)[0]] = value_head.grad
    ours = {name: weight.grad for name, weight in model.named.items() if isinstance(weight, nn.Parameter)}
    none = sorted(name for name, gradient in ours.items() if gradient is None)
    require(not none, f"no gradient reaches {', '.join(none)}: is the output made without them, or detached?")
    for hf_name, gradient in theirs.items():
        own = assemble_hf(hf_name, weights, copy_from(ours), torch.float64)
        error = distance(own, gradient)
        require(
            error <= tolerance,
            f"the gradient of {hf_name} differs from transformers' by {error:.1e} of its largest element (allowed: "
            f"{tolerance:.0e}) while the {name} agree: something in backward, or a weight that is used twice",
        )


def _expected(hf: nn.Module, value_head: nn.Parameter | None, ids: Tensor) -> Tensor:
    """[T, V] logits, or [T] values."""
    if value_head is None:
        return hf(ids[None], use_cache=False).logits[0]
    return hf.base_model(ids[None], use_cache=False).last_hidden_state[0] @ value_head[0]
