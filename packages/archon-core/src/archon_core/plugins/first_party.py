"""What Archon's own packages bring, installed or not. Made from their plugins by tooling/docs.py; do not edit.

The tables only serve messages: a plugin works without standing here.
"""

from __future__ import annotations

from collections.abc import Mapping

PACKAGES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "algorithm": {
        "archon-rl": (
            "sft",
            "grpo",
        ),
    },
    "command": {
        "archon-rollout": ("generate",),
        "archon-engine": ("convert",),
        "archon-pipeline": ("pipeline",),
        "archon-scaffold": ("new",),
        "archon-testing": ("verify",),
        "archon-train": ("train",),
    },
    "dataset": {
        "archon-rl": (
            "jsonl",
            "hf",
            "arithmetic",
        ),
    },
    "dialect": {
        "archon-train": ("areal",),
    },
    "inference_engine": {
        "archon-rollout": ("local",),
        "archon-sglang": ("sglang",),
        "archon-vllm": ("vllm",),
    },
    "launcher": {
        "archon-ray": ("ray",),
        "archon-slurm": ("slurm",),
    },
    "model": {
        "archon-models-qwen": (
            "qwen2",
            "qwen3",
            "qwen3_moe",
        ),
        "archon-models-hf": ("hf",),
    },
    "moe": {
        "archon-moe": ("moe",),
    },
    "pipeline": {
        "archon-pipeline": ("pipeline",),
    },
    "reward": {
        "archon-rl": (
            "arithmetic",
            "exact",
            "gsm8k",
        ),
    },
    "schedule": {
        "archon-pipeline": (
            "GPipe",
            "1F1B",
            "Interleaved1F1B",
            "I1F1B",
            "InterleavedZeroBubble",
            "IZB",
            "ZB1P",
            "ZBVZeroBubble",
            "ZBV",
        ),
    },
    "train_engine": {
        "archon-engine": ("archon",),
        "archon-models-hf": ("fsdp",),
    },
}
"""Kind of spec -> package -> names and aliases. The first package of a kind is the one to begin with."""

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "archon-engine": (
        "actor.archon",
        "critic.archon",
        "ref.archon",
        "teacher.archon",
    ),
    "archon-models-hf": (
        "actor.archon",
        "critic.archon",
        "ref.archon",
        "teacher.archon",
    ),
    "archon-moe": (
        "actor.archon.moe_aux_loss",
        "actor.archon.moe_aux_loss_coef",
        "actor.archon.moe_bias_update_rate",
        "actor.archon.moe_grouped_gemm",
        "actor.archon.moe_z_loss_coef",
        "critic.archon.moe_aux_loss",
        "critic.archon.moe_aux_loss_coef",
        "critic.archon.moe_bias_update_rate",
        "critic.archon.moe_grouped_gemm",
        "critic.archon.moe_z_loss_coef",
        "ref.archon.moe_aux_loss",
        "ref.archon.moe_aux_loss_coef",
        "ref.archon.moe_bias_update_rate",
        "ref.archon.moe_grouped_gemm",
        "ref.archon.moe_z_loss_coef",
        "teacher.archon.moe_aux_loss",
        "teacher.archon.moe_aux_loss_coef",
        "teacher.archon.moe_bias_update_rate",
        "teacher.archon.moe_grouped_gemm",
        "teacher.archon.moe_z_loss_coef",
    ),
    "archon-ray": ("ray",),
    "archon-rl": (
        "actor.adv_norm",
        "actor.behave_imp_weight_cap",
        "actor.behave_imp_weight_mode",
        "actor.c_clip",
        "actor.discount",
        "actor.dynamic_sampling",
        "actor.entropy_coef",
        "actor.eps_clip",
        "actor.eps_clip_higher",
        "actor.gae_lambda",
        "actor.kl_ctl",
        "actor.kl_estimator",
        "actor.kl_loss_coef",
        "actor.kl_loss_estimator",
        "actor.loss_aggregation",
        "actor.mask_no_eos_with_zero",
        "actor.overlong_penalty_factor",
        "actor.overlong_reward_penalty",
        "actor.overlong_tokens",
        "actor.ppo_n_minibatches",
        "actor.recompute_logprob",
        "actor.reward_bias",
        "actor.reward_clip",
        "actor.reward_norm",
        "actor.reward_scaling",
        "actor.use_decoupled_loss",
        "data.arithmetic.max_operand",
        "data.arithmetic.operators",
        "data.arithmetic.zero_pad",
        "data.hf.name",
        "data.hf.split",
        "data.hf.validation_split",
        "tokenizer.use_chat_template",
        "warm_start.batch_size",
        "warm_start.lr",
        "warm_start.steps",
    ),
    "archon-sglang": ("sglang",),
    "archon-vllm": ("vllm",),
}
"""Package -> configuration sections and options that it brings."""
