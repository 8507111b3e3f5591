"""Builds Megatron-Core's counterpart of a model on this rank, and the process groups that it runs on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import silu

from archon_engine.models.hf_config import load_hf_config
from archon_testing.megatron_oracle.architecture import MegatronSizes, has_experts
from archon_testing.megatron_oracle.shims import running_on_cpus


@contextmanager
def megatron_groups(sizes: MegatronSizes) -> Iterator[None]:
    """Megatron's process groups over all ranks of the world, on CPUs."""
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with running_on_cpus():
        from megatron.core import parallel_state

        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=sizes.tensor,
            pipeline_model_parallel_size=sizes.pipeline,
            expert_model_parallel_size=sizes.expert,
            expert_tensor_parallel_size=1,
        )
        try:
            yield
        finally:
            parallel_state.destroy_model_parallel()


def build_model(entries: Mapping[str, Any], sizes: MegatronSizes, *, longest: int) -> Any:
    """This rank's stage of a model in Megatron's data-parallel wrapper; its weights are undefined."""
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel

    config = megatron_config(entries, sizes)
    hf = load_hf_config(entries)
    model = GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_decoder_block_spec(
            config, use_transformer_engine=False, normalization=config.normalization
        ),
        vocab_size=hf.vocab_size,
        max_sequence_length=longest,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        share_embeddings_and_output_weights=bool(hf.tie_word_embeddings),
        position_embedding_type="rope",
        rotary_base=hf.rope_parameters["rope_theta"],
    )
    options = DistributedDataParallelConfig(overlap_grad_reduce=False, use_distributed_optimizer=False)
    return DistributedDataParallel(config, options, model)


def megatron_config(entries: Mapping[str, Any], sizes: MegatronSizes) -> Any:
    """Megatron's configuration of the architecture in float32, without dropout, fusions and balancing losses."""
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import TransformerConfig

    hf = load_hf_config(entries)
    experts: dict[str, Any] = {}
    if has_experts(entries):
        dense = set(hf.mlp_only_layers or ())
        sparse = [i not in dense and (i + 1) % (hf.decoder_sparse_step or 1) == 0 for i in range(hf.num_hidden_layers)]
        experts = {
            "num_moe_experts": hf.num_experts,
            "moe_router_topk": hf.num_experts_per_tok,
            "moe_ffn_hidden_size": hf.moe_intermediate_size,
            "moe_layer_freq": [int(each) for each in sparse],
            # Normalised probabilities of the chosen experts are a softmax over their logits alone.
            "moe_router_pre_softmax": not hf.norm_topk_prob,
            "moe_router_load_balancing_type": "none",
            "moe_token_dispatcher_type": "allgather",
            "moe_grouped_gemm": False,
        }
    return TransformerConfig(
        num_layers=hf.num_hidden_layers,
        hidden_size=hf.hidden_size,
        ffn_hidden_size=hf.intermediate_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads,
        normalization="RMSNorm",
        layernorm_epsilon=hf.rms_norm_eps,
        qk_layernorm=hf.model_type != "qwen2",
        add_qkv_bias=hf.model_type == "qwen2",
        add_bias_linear=False,
        gated_linear_unit=True,
        activation_func=silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=sizes.tensor,
        pipeline_model_parallel_size=sizes.pipeline,
        expert_model_parallel_size=sizes.expert,
        expert_tensor_parallel_size=1,
        params_dtype=torch.float32,
        pipeline_dtype=torch.float32,
        use_cpu_initialization=True,
        perform_initialization=False,
        # Kernels of Apex and Transformer Engine, which CPUs do not have.
        persist_layer_norm=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        cross_entropy_loss_fusion=False,
        # The loss is a sum over tokens, which Megatron divides by the tokens of all micro-batches and data ranks.
        calculate_per_token_loss=True,
        finalize_model_grads_func=finalize_model_grads,
        **experts,
    )
