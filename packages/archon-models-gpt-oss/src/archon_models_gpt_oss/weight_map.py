"""Hugging Face's names of gpt-oss weights and ours.

Experts are stored as matrices from inputs to outputs, the columns of gate and up in turn; ours lead from outputs to
inputs. In MXFP4 files, blocks run along the inputs, so these have the order of ours.
"""

from __future__ import annotations

from archon_core.models.encoded import Encoded
from archon_core.models.head_rules import head_rules
from archon_core.models.weight_map import WeightMap
from archon_core.models.weight_rules import Drop, Interleave, Rename, Tie
from archon_engine.models.encodings import Mxfp4
from archon_models_gpt_oss.arguments import GptOssArguments

HF, OURS = "model.layers.{layer}", "layers.{layer}"
_STORED, _EXPERTS = f"{HF}.mlp.experts", f"{OURS}.moe.experts"
_GATE_AND_UP = (f"{_EXPERTS}.gate_proj", f"{_EXPERTS}.up_proj")
_SWAPPED = (0, 2, 1)

_PLAIN = (
    Interleave(f"{_STORED}.gate_up_proj", _GATE_AND_UP, dim=1, order=_SWAPPED),
    Rename(f"{_STORED}.down_proj", f"{_EXPERTS}.down_proj", order=_SWAPPED),
)
"""Experts as transformers holds and saves them."""

_MXFP4 = (
    Interleave(f"{_STORED}.gate_up_proj", _GATE_AND_UP, dim=1),
    Rename(f"{_STORED}.down_proj", f"{_EXPERTS}.down_proj"),
    *(
        Encoded(name, (f"{name}_blocks", f"{name}_scales"), Mxfp4())
        for name in (f"{_STORED}.gate_up_proj", f"{_STORED}.down_proj")
    ),
)
"""Experts as OpenAI publishes them."""


def weight_map(arguments: GptOssArguments) -> WeightMap:
    """The rules for a model of these arguments: experts are saved as plain weights, and read from MXFP4 too."""
    rules, moe = _outside_experts(arguments), arguments.moe
    has_blocks = moe.hidden_size % Mxfp4.block == 0 and moe.intermediate_size % Mxfp4.block == 0
    return WeightMap((*rules, *_PLAIN), alternatives=(WeightMap((*rules, *_MXFP4)),) if has_blocks else ())


def _outside_experts(arguments: GptOssArguments) -> list[Rename | Interleave | Tie | Drop]:
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    kinds = ("weight", "bias") if arguments.attention_bias else ("weight",)
    rules: list[Rename | Interleave | Tie | Drop] = [
        Rename("model.embed_tokens.weight", "embed.weight"),
        *(
            Rename(f"{HF}.self_attn.{projection}.{kind}", f"{OURS}.attention.{projection}.{kind}")
            for projection in projections
            for kind in kinds
        ),
        Rename(f"{HF}.self_attn.sinks", f"{OURS}.attention.sinks.weight"),
        Rename(f"{HF}.input_layernorm.weight", f"{OURS}.attention_norm.weight"),
        Rename(f"{HF}.post_attention_layernorm.weight", f"{OURS}.mlp_norm.weight"),
        Rename(f"{HF}.mlp.router.{{kind}}", f"{OURS}.moe.router.{{kind}}"),
        Interleave(f"{_STORED}.gate_up_proj_bias", (f"{_EXPERTS}.gate_bias", f"{_EXPERTS}.up_bias"), dim=1),
        Rename(f"{_STORED}.down_proj_bias", f"{_EXPERTS}.down_bias"),
        Rename("model.norm.weight", "norm.weight"),
    ]
    return rules + head_rules(tied=arguments.tied, critic=arguments.critic, tied_in_files=arguments.tied_in_files)
