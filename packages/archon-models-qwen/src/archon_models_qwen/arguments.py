"""What the decoder is built from: the sizes and options that a Hugging Face configuration of the families gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from archon_core.errors import ModelError
from archon_engine.models.config_checks import check_divides, check_sizes, window_of_layers
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
)


@dataclass(frozen=True)
class QwenArguments:
    """A dense Qwen2 or Qwen3.

    Attributes:
        vocab_size: rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width inside the feed-forward blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; divides ``n_heads``.
        head_dim: size of a head; need not be ``hidden_size / n_heads``.
        qkv_bias: biases on query, key and value projections.
        output_bias: a bias on the attention's output projection.
        qk_norm: normalise every query and key head.
        hidden_act: activation by its ``transformers`` name.
        norm_eps: added to mean squares.
        windows: per layer, the number of keys that a token sees, including its own; ``None`` for all.
        rope: rotary frequencies.
        tied: whether the head uses the embedding's weight.
        critic: whether the model has a value head instead of the language-model head.
        attention_dropout: dropout of the configuration. It is never applied, so an engine with
            ``disable_dropout=false`` must refuse a value above 0.
        tied_in_files: whether the checkpoint's language-model head is its embedding, even if a value head replaces it.
        output_gate: whether attention's result is multiplied by the sigmoid of a gate, which the query projection gives
            beside each head's query.
        norm_offset: added to the weights of norms: 1 where these start at 0.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    hidden_act: str
    norm_eps: float
    windows: tuple[int | None, ...]
    rope: RopeArguments
    tied: bool
    critic: bool
    attention_dropout: float = 0.0
    tied_in_files: bool = False
    output_gate: bool = False
    norm_offset: float = 0.0

    @property
    def n_layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)

    @classmethod
    def from_hf_config(cls, config: PreTrainedConfig, *, critic: bool) -> QwenArguments:
        """Read a ``transformers`` configuration of model type qwen2 or qwen3.

        Raises:
            ModelError: another model type, or an entry that these architectures do not have.
        """
        if config.model_type not in ("qwen2", "qwen3"):
            raise ModelError(f"found model_type {config.model_type!r}; this decoder is for qwen2 and qwen3")
        is_qwen3 = config.model_type == "qwen3"
        refuse_unknown_entries(config, honoured=("head_dim",))
        bias = config.attention_bias if is_qwen3 else True
        return cls(
            **decoder_fields(config, critic=critic),
            qkv_bias=bias,
            output_bias=bias and is_qwen3,
            qk_norm=is_qwen3,
            windows=window_of_layers(config, fix="use_sliding_window and sliding_window"),
        )


def decoder_fields(config: PreTrainedConfig, *, critic: bool, partial_rotation: bool = False) -> dict[str, Any]:
    """The fields of ``QwenArguments`` that all families read alike.

    Args:
        config: of the model.
        critic: whether the model has a value head.
        partial_rotation: whether the family can rotate a part of each head.

    Raises:
        ModelError: an entry that these architectures do not have.
    """
    check_sizes(config, _SIZES)
    check_divides(config, "num_attention_heads", "num_key_value_heads")
    n_heads = config.num_attention_heads
    activation(config.hidden_act)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        # Families without dense layers have none.
        "intermediate_size": getattr(config, "intermediate_size", 0),
        "n_heads": n_heads,
        "n_kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "hidden_act": config.hidden_act,
        "norm_eps": config.rms_norm_eps,
        "rope": RopeArguments.from_hf_config(config, head_dim, partial=partial_rotation),
        "tied": config.tie_word_embeddings and not critic,
        "tied_in_files": config.tie_word_embeddings,
        "critic": critic,
        "attention_dropout": config.attention_dropout,
    }
