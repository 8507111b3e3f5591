"""The arguments of the decoder with experts: those of the dense decoder, and the settings of its expert layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_models_qwen.arguments import QwenArguments, decoder_fields

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, kw_only=True)
class QwenMoEArguments(QwenArguments):
    """A Qwen3-MoE. ``intermediate_size`` is that of its dense layers, if it has any.

    Attributes:
        moe: the blocks of experts.
        sparse: per layer, whether it has experts; the others are dense.
    """

    moe: MoESettings
    sparse: tuple[bool, ...]

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> QwenMoEArguments:
        """Read a ``transformers`` configuration of model type qwen3_moe.

        Raises:
            ModelError: another model type, or an entry that the architecture does not have.
        """
        if config.model_type != "qwen3_moe":
            raise ModelError(f"found model_type {config.model_type!r}; this decoder is for qwen3_moe")
        # ``num_local_experts`` is what transformers calls num_experts inside. Every Qwen3-MoE on the hub has
        # max_window_layers, which transformers does not read: where windows are used, all layers have one.
        refuse_unknown_entries(config, honoured=("head_dim", "num_local_experts", "max_window_layers"))
        bias = config.attention_bias
        return cls(
            **decoder_fields(config, critic=critic),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=True,
            windows=(_window(config),) * config.num_hidden_layers,
            moe=_moe_settings(config),
            sparse=_sparse_layers(config),
        )


def _window(config: PreTrainedConfig) -> int | None:
    if config.use_sliding_window and not config.sliding_window:
        raise ModelError(
            f"{_WHERE}: found use_sliding_window with sliding_window {config.sliding_window}; set it to the number of "
            "tokens that a token sees, or use_sliding_window to false"
        )
    return config.sliding_window if config.use_sliding_window else None


def _moe_settings(config: PreTrainedConfig) -> MoESettings:
    n_experts, top_k = config.num_experts, config.num_experts_per_tok
    if not 1 <= top_k <= n_experts:
        raise ModelError(
            f"{_WHERE}: found num_experts {n_experts} and num_experts_per_tok {top_k}; a token goes to at least one "
            "expert and at most to all (a Qwen3 without experts has model_type qwen3)"
        )
    return MoESettings(
        hidden_size=config.hidden_size,
        intermediate_size=config.moe_intermediate_size,
        n_experts=n_experts,
        top_k=top_k,
        hidden_act=config.hidden_act,
        norm_topk_prob=config.norm_topk_prob,
    )


def _sparse_layers(config: PreTrainedConfig) -> tuple[bool, ...]:
    step = config.decoder_sparse_step
    if step < 1:
        raise ModelError(
            f"{_WHERE}: found decoder_sparse_step {step}; allowed are numbers from 1: one layer in N has experts"
        )
    sparse = tuple(
        layer not in config.mlp_only_layers and (layer + 1) % step == 0 for layer in range(config.num_hidden_layers)
    )
    if not any(sparse):
        raise ModelError(
            f"{_WHERE}: found no layer with experts (num_hidden_layers {config.num_hidden_layers}, decoder_sparse_step "
            f"{step}, mlp_only_layers {config.mlp_only_layers}); change these, or use model_type qwen3, which is dense"
        )
    return sparse


_WHERE = "qwen3_moe configuration"
