"""``transformers``' model of a small configuration with random weights, and the outputs of its parts.

Weights have a large variance, so that every part affects the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from archon_core.errors import ModelError
from archon_engine.models.hf_config import load_hf_config

N_TOKENS = 24
"""Longer than windows and rotary lengths of test configurations."""

LARGEST = 20_000_000
"""Largest number of parameters of a small model."""

ALTERNATIVES = (
    "archon verify CONFIG shows whether archon-models-hf runs it unchanged (pip install archon-models-hf); or start "
    "from a small Llama (leave --from-hf out) and follow PORTING.md, which comes with it"
)


@dataclass(frozen=True)
class Twin:
    """``transformers``' model of a small configuration.

    Attributes:
        entries: content of the ``config.json``.
        config: the same, as ``transformers`` reads it.
        module: its language model, in fp32.
        root: prefix of the decoder's names, such as ``model.``.
        layers: its layers.
    """

    entries: Mapping[str, Any]
    config: Any
    module: nn.Module
    root: str
    layers: list[nn.Module]

    @property
    def names(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters of the first layer, without their prefix."""
        return {name: tuple(p.shape) for name, p in self.layers[0].named_parameters()}

    @property
    def decoder(self) -> nn.Module:
        """The module with embedding, layers and final norm."""
        return self.module.get_submodule(self.root.removesuffix("."))

    @property
    def ids(self) -> Tensor:
        """Token ids, int64 [N_TOKENS]; deterministic, without special tokens."""
        return torch.randint(3, self.config.vocab_size, (N_TOKENS,), generator=torch.Generator().manual_seed(3))

    @cached_property
    def trace(self) -> Mapping[str, Tensor]:
        """Outputs of the parts, [N_TOKENS, ...] each, by the names of a generated package: ``embed``,
        ``layers.0.attention``, ``layers.0.mlp``, ``layers.0``, ``norm``, ``projection`` (the raw output of the head's
        matrix) and ``logits``."""
        trace: dict[str, Tensor] = {}

        def keep_input(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
                value = args[0] if args else kwargs["hidden_states"]
                trace[name] = value.detach().reshape(-1, value.shape[-1])

            return hook

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
                value = output[0] if isinstance(output, tuple) else output
                trace[name] = value.detach().reshape(-1, value.shape[-1])

            return hook

        # The input of the first layer, since some models scale embeddings outside of the embedding.
        hooks = [self.layers[0].register_forward_pre_hook(keep_input("embed"), with_kwargs=True)]
        for number, layer in enumerate(self.layers):
            for name, part in (("attention", "self_attn"), ("mlp", "mlp")):
                if hasattr(layer, part):
                    hooks.append(getattr(layer, part).register_forward_hook(keep(f"layers.{number}.{name}")))
            hooks.append(layer.register_forward_hook(keep(f"layers.{number}")))
        head = self.module.get_output_embeddings()
        hooks.append(head.register_forward_pre_hook(keep_input("norm"), with_kwargs=True))
        hooks.append(head.register_forward_hook(keep("projection")))
        with torch.no_grad():
            trace["logits"] = self.module(self.ids[None], use_cache=False).logits[0].float()
        for hook in hooks:
            hook.remove()
        return trace


def build_twin(entries: Mapping[str, Any]) -> Twin:
    """Build the model and draw its weights.

    Raises:
        ModelError: ``transformers`` cannot build it, or its model is not a decoder with attention and feed-forward
            blocks under Llama's names.
    """
    from transformers import AutoModelForCausalLM

    config = load_hf_config(entries)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            with torch.device("meta"):
                outline = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            n_parameters = sum(parameter.numel() for parameter in outline.parameters())
            if n_parameters > LARGEST:
                raise ModelError(
                    f"model type {config.model_type!r} is not a Llama-like decoder: with small sizes it has "
                    f"{n_parameters / 1e6:,.0f} million parameters, so its sizes have other names; {ALTERNATIVES}"
                )
            module = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        except ModelError:
            raise
        except Exception as error:  # whatever its constructor raises for sizes that it does not take
            raise ModelError(
                f"model type {config.model_type!r}: transformers cannot build a small one ({error}); {ALTERNATIVES}"
            ) from error
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.normal_(0, 0.3 if parameter.ndim > 1 else 1.0)
            for name, buffer in module.named_buffers():
                if name.endswith("e_score_correction_bias"):
                    buffer.normal_(0, 0.3)
    found = [
        name for name, part in module.named_modules() if name.endswith("layers") and isinstance(part, nn.ModuleList)
    ]
    layers = list(module.get_submodule(found[0])) if len(found) == 1 else []
    root = found[0].removesuffix("layers") if len(found) == 1 else ""
    embedding = module.get_input_embeddings()
    named = module.get_submodule(f"{root}embed_tokens") if hasattr(_at(module, root), "embed_tokens") else None
    if not layers or not hasattr(layers[0], "self_attn") or named is not embedding:
        parts = (
            ", ".join(sorted({name.partition(".")[0] for name, _ in layers[0].named_modules() if name}))
            if layers
            else ""
        )
        raise ModelError(
            f"model type {config.model_type!r} is not a Llama-like decoder: "
            f"{'its layers hold ' + parts if parts else 'found no list of layers'}, and packages are written for "
            f"decoders with embed_tokens and layers.N.self_attn; {ALTERNATIVES}"
        )
    return Twin(entries, config, module, root, layers)


def _at(module: nn.Module, root: str) -> nn.Module:
    return module.get_submodule(root.removesuffix("."))
