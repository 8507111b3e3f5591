"""What the decoder is built from: the sizes and options that a Hugging Face configuration gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.contracts.decisions import Decision
from archon_core.contracts.moe import ClampedGate, MoESettings
from archon_core.errors import ModelError
from archon_engine.models.config_checks import check_divides, check_sizes, window_of_layers
from archon_engine.models.hf_config import refuse_unknown_entries
from archon_engine.nn.rotary import RopeArguments

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
    "num_local_experts",
    "num_experts_per_tok",
)
_HONOURED = (
    "num_experts",
    "quantization_config",
    # Not in the class of all versions of transformers 5.
    "swiglu_alpha",
    "swiglu_limit",
    # Checkpoints on the hub repeat two entries under the names of the original implementation; transformers reads
    # num_experts_per_tok and rope_parameters.
    "experts_per_token",
    "initial_context_length",
)
_WHERE = "gpt_oss configuration"


@dataclass(frozen=True)
class GptOssArguments:
    """A gpt-oss.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides ``n_heads``.
        head_dim: size of a head.
        attention_bias: biases on all four projections of attention.
        norm_eps: added to mean squares.
        windows: per layer, the number of keys that a token sees, including its own; ``None`` for all.
        rope: rotary frequencies.
        moe: settings of the expert blocks.
        tied: whether the head uses the embedding's weight.
        critic: whether the model has a value head instead of the language-model head.
        quantised: format of the configuration's checkpoint, which is decoded when it is loaded; ``None`` for plain
            weights.
        attention_dropout: dropout of the configuration, which is never applied.
        tied_in_files: whether the checkpoint's language-model head is its embedding, even if a value head replaces it.
    """

    vocab_size: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    attention_bias: bool
    norm_eps: float
    windows: tuple[int | None, ...]
    rope: RopeArguments
    moe: MoESettings
    tied: bool
    critic: bool
    quantised: str | None = None
    attention_dropout: float = 0.0
    tied_in_files: bool = False

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What differs from the configuration."""
        if self.quantised is None:
            return ()
        reason = (
            "experts are decoded when they are loaded, trained in the engine's dtype, and saved as plain weights under "
            "transformers' names"
        )
        return (Decision("quantization_config", self.quantised, "plain weights", reason),)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> GptOssArguments:
        """Read a ``transformers`` configuration of model type gpt_oss.

        Raises:
            ModelError: another model type, or an entry that the architecture does not have.
        """
        if config.model_type != "gpt_oss":
            raise ModelError(f"found model_type {config.model_type!r}; this decoder is for gpt_oss")
        refuse_unknown_entries(config, honoured=_HONOURED)
        _check(config)
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            attention_bias=config.attention_bias,
            norm_eps=config.rms_norm_eps,
            windows=window_of_layers(config, fix="sliding_window"),
            rope=RopeArguments.from_hf_config(config, config.head_dim),
            moe=_moe_settings(config),
            tied=config.tie_word_embeddings and not critic,
            tied_in_files=config.tie_word_embeddings,
            critic=critic,
            quantised=_quantised(config),
            attention_dropout=config.attention_dropout,
        )


def _check(config: PreTrainedConfig) -> None:
    check_sizes(config, _SIZES)
    check_divides(config, "num_attention_heads", "num_key_value_heads")
    if config.hidden_act != "silu":
        raise ModelError(f"{_WHERE}: found hidden_act {config.hidden_act!r}; the clamped gate of gpt-oss needs silu")


def _moe_settings(config: PreTrainedConfig) -> MoESettings:
    if config.num_experts_per_tok > config.num_local_experts:
        raise ModelError(
            f"{_WHERE}: found num_local_experts {config.num_local_experts} and num_experts_per_tok "
            f"{config.num_experts_per_tok}; a token goes to at most all experts"
        )
    return MoESettings(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        n_experts=config.num_local_experts,
        top_k=config.num_experts_per_tok,
        # The softmax over the chosen logits is the softmax over all, divided by its sum over the chosen.
        norm_topk_prob=True,
        expert_bias=True,
        router_bias=True,
        clamped_gate=ClampedGate(getattr(config, "swiglu_alpha", 1.702), getattr(config, "swiglu_limit", 7.0)),
    )


def _quantised(config: PreTrainedConfig) -> str | None:
    found = getattr(config, "quantization_config", None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    if method != "mxfp4":
        raise ModelError(
            f"{_WHERE}: found quantization_config with quant_method {method!r}; allowed are mxfp4 and checkpoints that "
            "are not quantised; convert the checkpoint first"
        )
    return "mxfp4"
