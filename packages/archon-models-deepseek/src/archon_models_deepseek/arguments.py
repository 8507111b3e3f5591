"""What the decoder is built from: the sizes and options that a Hugging Face configuration gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError
from archon_core.models.prediction_layers import prediction_layer_decisions
from archon_engine.models.config_checks import check_sizes
from archon_engine.models.expert_config import dense_layers, expert_settings
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_engine.nn.latent_attention import LatentSizes, latent_scale
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
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "max_position_embeddings",
    "n_routed_experts",
    "moe_intermediate_size",
)
_WHERE = "deepseek_v3 configuration"
_HONOURED = (
    "head_dim",
    "qk_head_dim",
    "num_local_experts",
    "num_nextn_predict_layers",
    "quantization_config",
    # Entries of published files that state what the architecture always does, or what only training of others reads.
    "aux_loss_alpha",
    "ep_size",
    "moe_layer_freq",
    "scoring_func",
    "seq_aux",
    "topk_method",
)
_ALWAYS = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
"""Entries of published configurations that transformers does not read, and the values that it computes by."""


@dataclass(frozen=True)
class DeepseekArguments:
    """A DeepSeek-V3.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward blocks of dense layers.
        n_layers: decoder layers.
        n_dense_layers: how many of them, the first ones, have no experts.
        n_prediction_layers: layers behind them in the checkpoint, which the decoder leaves out.
        attention: sizes of the attention.
        attention_bias: biases on its down projections and its output projection.
        attention_scale: factor on scores.
        hidden_act: activation by its ``transformers`` name.
        norm_eps: added to mean squares.
        rope: rotary frequencies of the rotated part of heads.
        moe: settings of the expert blocks.
        tied: whether the head uses the embedding's weight.
        critic: whether the model has a value head instead of the language-model head.
        fp8_block: rows and columns of a block of FP8 values, in which the checkpoint may store projections; ``None``
            for plain weights.
        attention_dropout: dropout of the configuration, which is never applied.
        tied_in_files: whether the checkpoint's language-model head is its embedding, even if a value head replaces it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_dense_layers: int
    n_prediction_layers: int
    attention: LatentSizes
    attention_bias: bool
    attention_scale: float
    hidden_act: str
    norm_eps: float
    rope: RopeArguments
    moe: MoESettings
    tied: bool
    critic: bool
    fp8_block: tuple[int, int] | None = None
    attention_dropout: float = 0.0
    tied_in_files: bool = False

    @property
    def head_dim(self) -> int:
        """Size of a query or key head."""
        return self.attention.head_dim

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the decoder leaves out of the configuration."""
        decisions = prediction_layer_decisions(self.n_prediction_layers)
        if self.fp8_block is None:
            return decisions
        reason = (
            "projections are decoded when they are loaded, trained in the engine's dtype, and saved as plain weights"
        )
        return (*decisions, Decision("quantization_config", "fp8", "plain weights", reason))

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> DeepseekArguments:
        """Read a ``transformers`` configuration of model type deepseek_v3.

        Raises:
            ModelError: another model type, or an entry that the architecture does not have.
        """
        if config.model_type != "deepseek_v3":
            raise ModelError(f"found model_type {config.model_type!r}; this decoder is for deepseek_v3")
        refuse_unknown_entries(config, honoured=_HONOURED)
        check_sizes(config, _SIZES)
        _check_entries(config)
        activation(config.hidden_act)
        sizes = LatentSizes(
            hidden_size=config.hidden_size,
            n_heads=config.num_attention_heads,
            query_rank=config.q_lora_rank,
            key_value_rank=config.kv_lora_rank,
            content_dim=config.qk_nope_head_dim,
            rotated_dim=config.qk_rope_head_dim,
            value_dim=config.v_head_dim,
        )
        rope = RopeArguments.from_hf_config(
            config, config.qk_rope_head_dim, interleaved=bool(getattr(config, "rope_interleave", True))
        )
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            n_layers=config.num_hidden_layers,
            n_dense_layers=dense_layers(config),
            n_prediction_layers=getattr(config, "num_nextn_predict_layers", 0) or 0,
            attention=sizes,
            attention_bias=config.attention_bias,
            attention_scale=latent_scale(sizes.head_dim, rope.parameters),
            hidden_act=config.hidden_act,
            norm_eps=config.rms_norm_eps,
            rope=rope,
            moe=expert_settings(config),
            tied=config.tie_word_embeddings and not critic,
            critic=critic,
            fp8_block=_fp8_block(config),
            attention_dropout=config.attention_dropout,
            tied_in_files=config.tie_word_embeddings,
        )


def _check_entries(config: PreTrainedConfig) -> None:
    for name, value in _ALWAYS.items():
        if getattr(config, name, value) != value:
            raise ModelError(f"{_WHERE}: {name}: found {getattr(config, name)!r}; allowed is {value!r}")
    n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
    if n_kv_heads != n_heads:
        raise ModelError(
            f"{_WHERE}: found num_key_value_heads {n_kv_heads} and num_attention_heads {n_heads}; latent attention "
            "makes keys and values for every head: set both to the same number"
        )


def _fp8_block(config: PreTrainedConfig) -> tuple[int, int] | None:
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    entries = found if isinstance(found, Mapping) else vars(found)
    block = entries.get("weight_block_size")
    is_block = isinstance(block, list | tuple) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)
    if entries.get("quant_method") != "fp8" or entries.get("fmt", "e4m3") != "e4m3" or not is_block:
        raise ModelError(
            f"{_WHERE}: found quantization_config {dict(entries)}; allowed are quant_method fp8 with fmt e4m3 and a "
            "weight_block_size of rows and columns, and plain checkpoints; convert the checkpoint first"
        )
    return block[0], block[1]
