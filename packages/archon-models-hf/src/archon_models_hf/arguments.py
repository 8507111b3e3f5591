"""What the decoder is built from: a configuration of transformers, made ready, and what was found of its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from archon_core.contracts.decisions import Decision
from archon_core.errors import ModelError
from archon_models_hf.tracing import Facts, examine
from archon_models_hf.transformers_model import prepared_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class HfArguments:
    """A model of transformers.

    Attributes:
        config: of transformers, with our attention, without dropout.
        critic: a value head instead of the language-model head.
        facts: what its module is.
        attention_dropout: the largest of its dropouts. None is applied: an engine that is told to keep dropout must
            refuse a value above 0.
        decisions: what the configuration asks for and the module does not do.
    """

    config: PreTrainedConfig
    critic: bool
    facts: Facts
    attention_dropout: float = 0.0
    decisions: tuple[Decision, ...] = ()

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.facts.attention)

    @property
    def head_dim(self) -> int:
        """The largest size of a head."""
        return max(layer.head_dim for layer in self.facts.attention)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> HfArguments:
        """Examine the model of a ``transformers`` configuration, of any model type.

        Raises:
            ModelError: it has none that is a causal decoder, or one that packed sequences cannot be run through.
        """
        if getattr(config, "is_causal", True) is False:
            raise ModelError(
                f"{config.model_type} configuration: found is_causal false; archon trains causal language models"
            )
        ready, dropout = prepared_config(config)
        facts = _examined(type(ready), json.dumps(ready.to_dict(), sort_keys=True, default=str), critic)
        return cls(ready, critic, facts, dropout, tuple(_router_losses(config)))


@lru_cache(maxsize=16)
def _examined(config_class: type[PreTrainedConfig], entries: str, critic: bool) -> Facts:
    """Ranks of a test, and parts of a program, ask for the same model again and again."""
    config = config_class(**json.loads(entries))
    return examine(prepared_config(config)[0], critic=critic)


def _router_losses(config: PreTrainedConfig) -> list[Decision]:
    """transformers adds a router's loss to the loss of a forward pass that is asked for it. Archon has losses of its
    own, which know nothing of routers inside of a module of transformers."""
    reason = "losses of routers inside of transformers' modules are not applied; archon-moe's models have them"
    decisions = []
    if getattr(config, "output_router_logits", False):
        decisions.append(Decision("output_router_logits", "true", "false", reason))
    coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if coefficient and not decisions:
        # As transformers has it: no loss without output_router_logits, so nothing that was asked for changes.
        decisions.append(Decision("router_aux_loss_coef", "not set", "0", reason))
    return decisions
