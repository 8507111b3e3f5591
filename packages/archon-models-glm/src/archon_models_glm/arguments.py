"""What the decoder is built from: the sizes and options that a Hugging Face configuration gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError
from archon_core.models.prediction_layers import prediction_layer_decisions
from archon_engine.models.config_checks import check_divides, check_sizes
from archon_engine.models.expert_config import dense_layers, expert_settings
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_engine.nn.rotary import RopeArguments
from archon_engine.nn.swiglu import activation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "n_routed_experts",
    "moe_intermediate_size",
)
_WHERE = "glm4_moe configuration"


@dataclass(frozen=True)
class GlmArguments:
    """A GLM-4 with experts.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward blocks of dense layers.
        n_layers: decoder layers.
        n_dense_layers: how many of them, the first ones, have no experts.
        n_prediction_layers: layers behind them in the checkpoint, which the decoder leaves out.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides ``n_heads``.
        head_dim: size of a head.
        qkv_bias: biases on query, key and value projections.
        qk_norm: normalise every query and key head.
        hidden_act: activation by its ``transformers`` name.
        norm_eps: added to mean squares.
        rope: rotary frequencies; a part of each head is rotated.
        moe: settings of the expert blocks.
        tied: whether the head uses the embedding's weight.
        attention_dropout: dropout of the configuration, which is never applied.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_dense_layers: int
    n_prediction_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    qkv_bias: bool
    qk_norm: bool
    hidden_act: str
    norm_eps: float
    rope: RopeArguments
    moe: MoESettings
    tied: bool
    attention_dropout: float = 0.0

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the decoder leaves out of the configuration."""
        return prediction_layer_decisions(self.n_prediction_layers)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> GlmArguments:
        """Read a ``transformers`` configuration of model type glm4_moe.

        Raises:
            ModelError: another model type, a critic, or an entry that the architecture does not have.
        """
        if config.model_type != "glm4_moe":
            raise ModelError(f"found model_type {config.model_type!r}; this decoder is for glm4_moe")
        if critic:
            raise ModelError("found is_critic; transformers has no class to save a glm4_moe critic with")
        refuse_unknown_entries(config, honoured=("head_dim", "num_local_experts", "num_nextn_predict_layers"))
        check_sizes(config, _SIZES)
        check_divides(config, "num_attention_heads", "num_key_value_heads")
        n_heads, head_dim = config.num_attention_heads, getattr(config, "head_dim", None)
        head_dim = head_dim or config.hidden_size // n_heads
        activation(config.hidden_act)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_dense_layers=dense_layers(config),
            n_prediction_layers=getattr(config, "num_nextn_predict_layers", 0) or 0,
            n_heads=n_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            qkv_bias=config.attention_bias,
            qk_norm=config.use_qk_norm,
            hidden_act=config.hidden_act,
            norm_eps=config.rms_norm_eps,
            rope=RopeArguments.from_hf_config(config, head_dim, partial=True),
            moe=expert_settings(config),
            tied=config.tie_word_embeddings,
            attention_dropout=config.attention_dropout,
        )
