"""The arguments of Qwen3.5: layers with Gated DeltaNet and layers with gated attention, dense or with experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import MoESettings
from archon_core.errors import ModelError
from archon_engine.models.config_checks import check_divides, check_sizes, layer_types
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_engine.nn.gated_delta_net import DeltaNetSettings
from archon_models_qwen.arguments import QwenArguments, decoder_fields

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_HONOURED = (
    "head_dim",
    "attn_output_gate",
    "mamba_ssm_dtype",
    "full_attention_interval",
    "mtp_num_hidden_layers",
    "mtp_use_dedicated_embeddings",
)
"""Entries of published configurations that transformers keeps but does not declare."""

_DELTA_SIZES = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)


@dataclass(frozen=True, kw_only=True)
class Qwen35Arguments(QwenArguments):
    """A dense Qwen3.5.

    Attributes:
        delta: the Gated DeltaNet layers.
        linear: per layer, whether it has Gated DeltaNet instead of attention.
        n_prediction_layers: layers for multi-token prediction in the configuration, which are not built.
    """

    delta: DeltaNetSettings
    linear: tuple[bool, ...]
    n_prediction_layers: int = 0

    @property
    def decisions(self) -> Sequence[Decision]:
        """Deviations from the configuration."""
        if not self.n_prediction_layers:
            return ()
        reason = "multi-token prediction is not trained; its weights are not loaded, and saved checkpoints have none"
        return (Decision("mtp_num_hidden_layers", str(self.n_prediction_layers), "0", reason),)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> Qwen35Arguments:
        """Read a ``transformers`` configuration of model type qwen3_5_text.

        Raises:
            ModelError: another model type, or an entry that the architecture does not have.
        """
        _check_type(config, "qwen3_5_text")
        refuse_unknown_entries(config, honoured=_HONOURED)
        return cls(**hybrid_fields(config, critic=critic))


@dataclass(frozen=True, kw_only=True)
class Qwen35MoEArguments(Qwen35Arguments):
    """A Qwen3.5 with experts in all layers.

    Attributes:
        moe: the blocks of experts.
    """

    moe: MoESettings

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> Qwen35MoEArguments:
        """Read a ``transformers`` configuration of model type qwen3_5_moe_text.

        Raises:
            ModelError: another model type, or an entry that the architecture does not have.
        """
        _check_type(config, "qwen3_5_moe_text")
        refuse_unknown_entries(config, honoured=(*_HONOURED, "num_local_experts"))
        n_experts, top_k = config.num_experts, config.num_experts_per_tok
        if not 1 <= top_k <= n_experts:
            raise ModelError(
                f"{config.model_type} configuration: found num_experts {n_experts} and num_experts_per_tok {top_k}; a "
                "token goes to at least one expert and at most to all"
            )
        moe = MoESettings(
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            n_experts=n_experts,
            top_k=top_k,
            hidden_act=config.hidden_act,
            norm_topk_prob=True,
            shared_intermediate_size=config.shared_expert_intermediate_size,
            shared_gate=True,
        )
        return cls(**hybrid_fields(config, critic=critic), moe=moe)


def hybrid_fields(config: PreTrainedConfig, *, critic: bool) -> dict[str, Any]:
    """The fields that both families read alike.

    Raises:
        ModelError: an entry that the architecture does not have.
    """
    where = f"{config.model_type} configuration"
    kinds = layer_types(config, ("full_attention", "linear_attention"))
    for name, allowed in (("attn_output_gate", True), ("mamba_ssm_dtype", "float32")):
        found = getattr(config, name, allowed)
        if found != allowed:
            raise ModelError(f"{where}: {name}: found {found!r}; the architecture has {allowed!r}; leave it out")
    bias = config.attention_bias
    return {
        **decoder_fields(config, critic=critic, partial_rotation=True),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "windows": (None,) * len(kinds),
        "output_gate": True,
        "norm_offset": 1.0,
        "delta": _delta_settings(config),
        "linear": tuple(kind == "linear_attention" for kind in kinds),
        "n_prediction_layers": getattr(config, "mtp_num_hidden_layers", 0) or 0,
    }


def _delta_settings(config: PreTrainedConfig) -> DeltaNetSettings:
    check_sizes(config, _DELTA_SIZES)
    check_divides(config, "linear_num_value_heads", "linear_num_key_heads")
    return DeltaNetSettings(
        hidden_size=config.hidden_size,
        n_key_heads=config.linear_num_key_heads,
        n_value_heads=config.linear_num_value_heads,
        key_dim=config.linear_key_head_dim,
        value_dim=config.linear_value_head_dim,
        filter_length=config.linear_conv_kernel_dim,
        hidden_act=config.hidden_act,
        norm_eps=config.rms_norm_eps,
    )


def _check_type(config: PreTrainedConfig, expected: str) -> None:
    if config.model_type != expected:
        raise ModelError(f"found model_type {config.model_type!r}; this decoder is for {expected}")
