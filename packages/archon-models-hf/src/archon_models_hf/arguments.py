"""The arguments of the decoder: a prepared transformers configuration, and the facts found by tracing its model."""

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
    """The arguments of a transformers model.

    Attributes:
        config: the transformers configuration, with Archon's attention and without dropout.
        critic: whether the model has a value head instead of the language-model head.
        facts: findings about its module.
        attention_dropout: the largest dropout of the configuration. It is never applied, so an engine with
            ``disable_dropout=false`` must refuse a value above 0.
        decisions: settings of the configuration that the module ignores.
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
        """The largest head size."""
        return max(layer.head_dim for layer in self.facts.attention)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> HfArguments:
        """Trace the model of a ``transformers`` configuration, of any model type.

        Raises:
            ModelError: the model is not a causal decoder, or does not support packed sequences.
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
    """Cached, since a process often requests the same model several times."""
    config = config_class(**json.loads(entries))
    return examine(prepared_config(config)[0], critic=critic)


def _router_losses(config: PreTrainedConfig) -> list[Decision]:
    """A decision if the configuration enables router losses: transformers adds them to its own loss, which Archon does
    not use."""
    reason = "losses of routers inside of transformers' modules are not applied; archon-moe's models have them"
    decisions = []
    if getattr(config, "output_router_logits", False):
        decisions.append(Decision("output_router_logits", "true", "false", reason))
    coefficient = getattr(config, "router_aux_loss_coef", 0.0)
    if coefficient and not decisions:
        # Without output_router_logits, transformers adds no router loss either, so nothing changes.
        decisions.append(Decision("router_aux_loss_coef", "not set", "0", reason))
    return decisions
