"""Records one forward pass of a transformers base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_LAYER = ""
"""Placeholder for a layer in the recorded names."""


@dataclass
class Passes:
    """The record of the pass.

    Attributes:
        calls: parts of the base model as they were called, a layer being ``""``.
        inputs: module -> the hidden states that it was given.
        outputs: module -> its first output.
        takes_tokens_first: module -> whether it was given hidden states first, or by the name ``hidden_states``.
    """

    calls: list[str] = field(default_factory=list)
    inputs: dict[nn.Module, Any] = field(default_factory=dict)
    outputs: dict[nn.Module, Any] = field(default_factory=dict)
    takes_tokens_first: dict[nn.Module, bool] = field(default_factory=dict)

    @property
    def n_layer_calls(self) -> int:
        """Number of layer calls."""
        return self.calls.count(_LAYER)

    @property
    def before_layers(self) -> list[str]:
        """Parts that ran before the first layer."""
        return self.calls[: self.calls.index(_LAYER)] if _LAYER in self.calls else self.calls

    @property
    def after_layers(self) -> list[str]:
        """Parts that ran after the last layer."""
        backwards = self.calls[::-1]
        return backwards[: backwards.index(_LAYER)][::-1] if _LAYER in self.calls else []

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook."""
        tokens = args[0] if args else kwargs.get("hidden_states")
        self.inputs[module] = tokens
        self.takes_tokens_first[module] = isinstance(tokens, Tensor) and tokens.ndim == 3

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A forward hook."""
        self.outputs[module] = output[0] if isinstance(output, tuple) else output


@contextmanager
def watching(base: nn.Module, layers: nn.ModuleList) -> Iterator[Passes]:
    """Record the calls of ``base``'s parts inside the block."""
    passes = Passes()
    handles = []

    def called(name: str) -> Any:
        return lambda module, args: passes.calls.append(name)

    for module in base.modules():
        handles.append(module.register_forward_pre_hook(passes.enter, with_kwargs=True))
        handles.append(module.register_forward_hook(passes.leave))
    for name, child in base.named_children():
        handles.append(child.register_forward_pre_hook(called(name)))
    handles += [layer.register_forward_pre_hook(called(_LAYER)) for layer in layers]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()
