"""What transformers' layers ask of attention, written down while a model is examined, and what of it is refused.

Legend: T tokens, Hq query heads, Hkv key and value heads, D head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from archon_core.contracts.packed import AttentionSettings
from archon_core.errors import ModelError
from archon_models_hf.masks import MaskForm
from archon_models_hf.transformers_model import ADVICE

_HANDED_DOWN = frozenset(
    {
        "cache_position",
        "layer_past",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)
"""Arguments that layers hand down to attention functions and that change nothing in what these compute."""


@dataclass(frozen=True)
class AttentionFacts:
    """Attention of one layer.

    Attributes:
        module: its name in the layer.
        settings: scale, window and softcap of its calls.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: size of a head.
        gets_packed: whether the layer hands its keyword arguments down to attention; else ``packed`` comes in the place
            of the mask, which every layer hands down.
    """

    module: str
    settings: AttentionSettings
    n_heads: int
    n_kv_heads: int
    head_dim: int
    gets_packed: bool


@dataclass(frozen=True)
class MaskWithRecorder:
    """Takes the place of a layer's mask while a model is examined: the mask reaches attention in every family.

    Attributes:
        mask: the layer's own.
        recorder: which receives the call of attention.
    """

    mask: Any
    recorder: Recorder


@dataclass
class Recorder:
    """Takes the place of ``packed`` while a model is examined.

    Attributes:
        where: whose attention it is, for messages.
        calls: attention module -> the facts of its call.
    """

    where: str
    calls: dict[nn.Module, AttentionFacts] = field(default_factory=dict)

    def enter_layer(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A forward pre-hook of layers."""
        if kwargs.get("packed") is not self:
            raise ModelError(
                f"{self.where}: {type(layer).__name__} of transformers is not given the keyword arguments of its "
                f"model, which tell where sequences begin; {ADVICE}"
            )
        if "attention_mask" not in kwargs:
            return args, kwargs
        return args, {**kwargs, "attention_mask": MaskWithRecorder(kwargs["attention_mask"], self)}

    def take(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, options: Mapping[str, Any]) -> None:
        """Write down one call; raises ModelError for what ``PackedAttention`` does not do."""
        who = f"{self.where}: attention ({type(module).__name__} of transformers)"
        if module in self.calls:
            raise ModelError(f"{who} is computed more than once in a pass; {ADVICE}")
        if q.shape[-1] != v.shape[-1]:
            raise ModelError(
                f"{who}: found values of size {v.shape[-1]} for queries of size {q.shape[-1]}; both must have one "
                f"size; {ADVICE}"
            )
        known = _UNDERSTOOD | _HANDED_DOWN
        unknown = {name: value for name, value in options.items() if name not in known}
        for name, value in unknown.items():
            if value is not None and value is not False:
                what = f"tensor {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ModelError(
                    f"{who}: found the argument {name} ({what}), which packed attention does not have; allowed are a "
                    f"scale, a window and a softcap; {ADVICE}"
                )
        if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise ModelError(f"{who}: found is_causal false; tokens must see earlier ones only; {ADVICE}")
        scale = options.get("scaling")
        self.calls[module] = AttentionFacts(
            module="",
            settings=AttentionSettings(
                scale=float(q.shape[-1] ** -0.5 if scale is None else scale),
                window=self._window(who, mask, options.get("sliding_window")),
                softcap=options.get("softcap"),
            ),
            n_heads=q.shape[1],
            n_kv_heads=k.shape[1],
            head_dim=q.shape[-1],
            gets_packed=options.get("packed") is self,
        )

    def _window(self, who: str, mask: Any, sliding_window: int | None) -> int | None:
        if mask is None:
            return sliding_window
        if not isinstance(mask, MaskForm) or not mask.is_causal:
            found = "a mask that is not causal" if isinstance(mask, MaskForm) else f"a custom mask ({mask!r:.80})"
            raise ModelError(f"{who}: found {found}; allowed are causal masks, with or without a window; {ADVICE}")
        if sliding_window not in (None, mask.window):
            raise ModelError(
                f"{who}: found a window of {sliding_window} beside a mask with {mask.window}; they must agree; {ADVICE}"
            )
        return mask.window

    def refuse_convolutions(self, layers: Iterable[nn.Module]) -> None:
        """Raise ModelError for layers that mix tokens by other means than attention, before they are run."""
        for number, layer in enumerate(layers):
            mixing = [name for name, part in layer.named_modules() if isinstance(part, nn.Conv1d)]
            if mixing:
                raise self._mixes(f"convolutions over tokens ({', '.join(mixing)})", number)

    def by_layer(self, layers: Iterable[nn.Module]) -> tuple[AttentionFacts, ...]:
        """The facts of each layer, in order.

        Raises:
            ModelError: a layer without attention, or with several: it would mix tokens in a way that packing, context
                parallelism and caches do not know.
        """
        found = []
        for number, layer in enumerate(layers):
            inside = {part: name for name, part in layer.named_modules()}
            calls = [(inside[module], facts) for module, facts in self.calls.items() if module in inside]
            if len(calls) != 1 or not calls[0][0]:
                raise self._mixes(f"{len(calls)} calls of attention", number)
            name, facts = calls[0]
            found.append(replace(facts, module=name))
        return tuple(found)

    def _mixes(self, found: str, layer: int) -> ModelError:
        return ModelError(
            f"{self.where}: found {found} in layer {layer}; archon-models-hf runs layers that mix tokens by one "
            f"attention through transformers' attention interface, and in no other way; {ADVICE}"
        )


def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> Any:
    """An ``AttentionInterface`` function that tells a ``Recorder``; [1, T, Hq, D] of zeros, and no weights."""
    if isinstance(attention_mask, MaskWithRecorder):
        attention_mask.recorder.take(module, query, key, value, attention_mask.mask, options)
    elif isinstance(recorder := options.get("packed"), Recorder):
        recorder.take(module, query, key, value, attention_mask, options)
    else:
        raise ModelError(
            f"attention ({type(module).__name__} of transformers) is given neither the mask nor the keyword arguments "
            f"of its layer, one of which must tell where sequences begin; {ADVICE}"
        )
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None


def common_heads(attention: Iterable[AttentionFacts]) -> tuple[int, int]:
    """Greatest common divisors over the layers: of the query heads, and of the key and value heads."""
    every = list(attention)
    return math.gcd(*(a.n_heads for a in every)), math.gcd(*(a.n_kv_heads for a in every))


_UNDERSTOOD = frozenset({"packed", "scaling", "sliding_window", "softcap", "is_causal", "dropout"})
