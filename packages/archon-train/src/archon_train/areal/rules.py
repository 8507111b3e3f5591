"""Rules for AReaL's options that Archon does not have: without effect, refused, or translated.

Every option of AReaL (``facts``) is honoured, without effect, or refused. An option is honoured if the schema of the
installed packages has it, under AReaL's name or under the one in ``keys.RENAMED``; the rules are then not consulted,
so a package that adds an option edits no table. An option without a rule is refused unless it has AReaL's default.

Nothing is dropped silently: unless its value requests what Archon does anyway, an option without effect becomes a
decision with the reason given here, and a value that would change results is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from archon_train.areal.keys import MEGATRON_TRANSLATED


@dataclass(frozen=True)
class Ignored:
    """AReaL options that are accepted without effect, or refused.

    Attributes:
        path: dotted name; ``*`` matches one name. A section covers all of its options.
        reason: reason of the decision or the refusal.
        harmless: values, as text, that match Archon's behaviour. ``name=value`` looks inside a section. AReaL's default
            is harmless too unless the option is refused.
        same_as: an option that it repeats; an equal value is harmless.
        otherwise: whether another value becomes a decision or, if it would change results, an error. ``translated`` if
            ``megatron`` or ``profiling`` turned it into another option and recorded that.
        feature: name of the missing feature. Options of one feature share one error.
    """

    path: str
    reason: str
    harmless: tuple[str, ...] = ()
    same_as: str = ""
    otherwise: Literal["decision", "error", "translated"] = "decision"
    feature: str = ""


def _refused(path: str, harmless: tuple[str, ...], reason: str, feature: str = "") -> Ignored:
    return Ignored(path, reason, harmless, otherwise="error", feature=feature or path)


SCRIPT_OPTIONS = frozenset(
    (
        "agent_builder_kwargs",
        "agent_builder_path",
        "agent_run_args",
        "agent_type",
        "econfig",
        "eval_workflow",
        "eval_workflow_kwargs",
        "export_style",
        "judge_engine",
        "log_agent_stats",
        "max_iteration",
        "max_llm_calls_per_run",
        "max_tokens_per_trajectory",
        "max_turns",
        "model_path",
        "n_trajs",
        "profile",
        "reward_fn_kwargs",
        "reward_fn_path",
        "reward_type",
        "search_client_type",
        "task_timeouts",
        "tir",
        "turn_discount",
        "workflow",
        "workflow_kwargs",
    )
)
"""Top-level names that AReaL's example scripts add to their own configuration classes. They are known although they may
resemble an option: ``econfig`` is no misspelt ``gconfig``."""

SCRIPT_REASON = "belongs to the script that reads this file in AReaL; archon train runs no script"

PHASES = "the times of a step's phases are metrics of every step (time/rollout, time/update, ...)"
SESSIONS = "single rollouts are not traced; time/rollout, time/reward and collector/... have their times per step"
FILES = "every profiled step has its own files, which are written after the step"
_ONE_NAME = "a run has one name for all of its parts"
_ONE_ROOT = "everything is written under cluster.fileroot"
_PLACEMENT = "processes are placed by the layout and scheduler.type"
_ROUTING = "a request goes to the server with the least work"
_SERVICE = "an option of AReaL's services"
_REWARDS = "reward functions run in processes beside the trainer (section rewards), not in a service"
_AGENTS = "the section rollout.agent describes agents"
_AGENT_STATS = "agents report no statistics of their own in this version"
_STEPS_ONLY = "trainer.save_every and trainer.eval_every count steps"
_STAYS = "the trainer stays in device memory"
_UNNAMED = "a server has the adapters of the run and no others, so they need no name"
_FP8 = "FP8 training is not part of this version; it needs scaled FP8 matrix products in the engine"
_MTP = "multi-token prediction is not part of this version; it needs models with prediction heads"
_LOSS_SCALE = "bfloat16 and float32 need no loss scale"
_FSDP2 = "parameters, gradients and optimizer state are sharded by FSDP2"
_HEAD = "the head computes log-probabilities in chunks and never holds all logits"
_CONVERSION = "weights are converted by the rules of the model's package"
_DISPATCH = "tokens are sent to experts by all-to-all, with the kernels that the device has"


def _sampling_rules(section: str) -> tuple[Ignored, ...]:
    return (
        _refused(f"{section}.use_beam_search", ("false",), "completions are sampled"),
        _refused(f"{section}.reward_normalization", ("false",), "set actor.reward_norm"),
        Ignored(f"{section}.drop_incomplete_group", "groups are always complete", ("true",)),
        Ignored(f"{section}.seed", "every sample is drawn with its own seed, derived from the option seed"),
        Ignored(f"{section}.skip_special_tokens", "rewards see texts without special tokens", ("true",)),
        Ignored(f"{section}.lora_name", _UNNAMED),
    )


IGNORED = (
    Ignored("*.experiment_name", _ONE_NAME, same_as="experiment_name"),
    Ignored("*.trial_name", _ONE_NAME, same_as="trial_name"),
    Ignored("*.fileroot", _ONE_ROOT, same_as="cluster.fileroot"),
    Ignored("*.offload", _STAYS, ("false",)),
    Ignored("async_training", "rollout.max_head_offpolicyness above 0 samples while the trainer trains", ("true",)),
    _refused("total_train_n_seqs", ("null",), "set trainer.max_steps"),
    Ignored("launcher", _PLACEMENT),
    Ignored("perf_tracer.enabled", PHASES, otherwise="translated"),
    Ignored("perf_tracer.profile_steps", "becomes profiler.trace_steps, counted from 1", otherwise="translated"),
    Ignored("perf_tracer.save_interval", FILES, otherwise="translated"),
    Ignored("perf_tracer.session_tracer", SESSIONS, otherwise="translated"),
    Ignored("memory_profiler.profile_steps", "becomes profiler.memory_steps, counted from 1", otherwise="translated"),
    Ignored("memory_profiler.max_entries", "becomes profiler.memory_entries", otherwise="translated"),
    Ignored("post_exit_hook", "Archon runs no command that a file names", ("",)),
    Ignored("cluster.cluster_name", "nothing depends on the cluster's name", ("local",)),
    Ignored("scheduler.endpoint", _PLACEMENT),
    Ignored("scheduler.deploy_mode", _PLACEMENT),
    Ignored("scheduler.functioncall_service_domain", _REWARDS),
    Ignored("scheduler.reward_functioncall_config", _REWARDS),
    Ignored("scheduler.reward_model_path", "reward=model scores with the model of reward_model.path", ("",)),
    Ignored("scheduler.reward_model_service_url", "reward=model runs its model in an engine, not behind an address"),
    # Data
    Ignored("*_dataset.type", "the option algorithm selects the training"),
    Ignored("*_dataset.pin_memory", "records are texts, tokenized in the trainer", ("false",)),
    Ignored("*_dataset.num_workers", "records are read in the trainer's process", ("0",)),
    Ignored("*_dataset.num_dataset_workers", "records are read in the trainer's process"),
    Ignored("*_dataset.setup_timeout", "records are read in the trainer's process"),
    Ignored("*_dataset.drop_last", "every training batch is full"),
    _refused("*_dataset.dataset_kwargs", ("{}",), "data.prompt_key, data.answer_key and data.hf select the records"),
    Ignored("valid_dataset.batch_size", "evaluation takes trainer.eval_size records at once"),
    Ignored("valid_dataset.shuffle", "evaluation always takes the same records in the same order", ("false",)),
    Ignored("valid_dataset.max_length", "data.max_length holds for both splits", ("null",), same_as="data.max_length"),
    # When to write and to evaluate
    Ignored("*.freq_epochs", _STEPS_ONLY, ("null",)),
    Ignored("*.freq_secs", _STEPS_ONLY, ("null",)),
    Ignored(
        "recover.freq_steps",
        "runs resume from the checkpoints of trainer.save_every",
        ("null",),
        same_as="trainer.save_every",
    ),
    Ignored("recover.retries", "becomes trainer.max_restarts where recover.mode recovers", otherwise="translated"),
    Ignored("recover.no_*_optim", "checkpoints hold the optimizer, and resumed runs continue with it", ("false",)),
    Ignored("saver.mode", "trainer.async_save writes checkpoints in the background", ("auto", "sync")),
    # Rollout
    Ignored("rollout.deterministic_sampling", "every sample is drawn with its own seed", ("true",)),
    Ignored("rollout.serialize_group_samples", "the samples of a prompt share its prefill", ("false",)),
    Ignored("rollout.schedule_policy", _ROUTING, ("round_robin",)),
    Ignored("rollout.tokenizer_path", "a run has one tokenizer", same_as="tokenizer_path"),
    Ignored("rollout.workers_ready_timeout", "rollout.setup_timeout limits the start of servers"),
    Ignored("rollout.routing_strategy", _ROUTING),
    Ignored("rollout.poll_interval", _SERVICE),
    Ignored("rollout.model", _SERVICE),
    _refused("rollout.api_url", ("null",), "completions of a remote service have no weights to update"),
    _refused("rollout.provider_api_key", ("null",), "completions of a remote service have no weights to update"),
    Ignored("rollout.openai", _AGENTS, ("null",)),
    Ignored("rollout.agent.*", "the algorithm samples no completions"),
    Ignored("*_dataset.scheduling_spec", "records are read in the trainer's process", ("null",)),
    _refused(
        "*.scheduling_spec.additional_bash_cmds",
        ("[]", "null"),
        "Archon runs no command that a file names; add it to a copy of the job script, and set slurm.template",
    ),
    Ignored("*.scheduling_strategy.fork", "engines that share processes are objects of one process"),
    # AReaL's services
    Ignored("*._version", "chooses one of AReaL's implementations"),
    Ignored("*.admin_api_key", _SERVICE),
    Ignored("*.log_level", _SERVICE),
    Ignored("*.request_timeout", _SERVICE),
    Ignored("*.setup_timeout", _SERVICE),
    Ignored("*.workers_ready_timeout", _SERVICE),
    # Sampling
    *_sampling_rules("gconfig"),
    *_sampling_rules("eval_gconfig"),
    # Engines
    Ignored("*.attn_impl", "attention is chosen by archon.attn_type", ("flash_attention_2",)),
    Ignored("*.use_kernels", "kernels are chosen by the device", ("false",)),
    Ignored("*.logprobs_chunk_size", _HEAD),
    Ignored("*.optimizer_dtype", "the optimizer's state has the type of archon.master_dtype", ("float32",)),
    Ignored(
        "*.weight_update_mode",
        "only the actor's has one, with servers: rollout.weight_transport (xccl: distributed, awex: shm, or the first "
        "that the servers support)",
    ),
    Ignored("*.enable_delta_weight_update", "whole weights are published", ("false",)),
    Ignored("*.weight_update_delta_method", "whole weights are published"),
    Ignored("*.weight_update_anchor_interval", "whole weights are published"),
    Ignored("*.fsdp.wrap_policy", "every layer is an FSDP unit", ("null",)),
    Ignored("*.fsdp.memory_efficient_load", "every rank reads only its shards"),
    Ignored("*.fsdp.per_layer_optim_step", "the optimizer steps once", ("false",)),
    Ignored("*.fsdp.optim_step_prefetch_layers", "the optimizer steps once"),
    Ignored("*.fsdp.shard_vision_across_sp", "there are no vision models", ("false",)),
    *(
        Ignored(f"*.megatron.{name}", f"becomes {option}", otherwise="translated")
        for name, option in MEGATRON_TRANSLATED.items()
    ),
    _refused("*.megatron.fp8_config", ("null",), _FP8, "FP8 training"),
    _refused("*.megatron.ddp.fp8_param_gather", ("false",), _FP8, "FP8 training"),
    _refused("*.megatron.enable_mtp", ("false",), _MTP, "multi-token prediction"),
    Ignored("*.megatron.ddp.grad_reduce_in_fp32", "ranks sum gradients in grad_reduce_dtype", ("true",)),
    Ignored("*.megatron.ddp.check_for_nan_in_grad", "a step with a gradient norm that is not finite is skipped"),
    Ignored("*.megatron.ddp.*", _FSDP2),
    Ignored("*.megatron.wrap_with_ddp", _FSDP2),
    Ignored("*.megatron.use_torch_fsdp2", _FSDP2),
    Ignored("*.megatron.use_custom_fsdp", _FSDP2),
    Ignored("*.megatron.overlap_param_gather_with_optimizer_step", _FSDP2),
    Ignored("*.megatron.disable_grad_buffers_cpu_backup", _FSDP2),
    Ignored("*.megatron.use_precision_aware_optimizer", "the optimizer's state has the type of archon.master_dtype"),
    Ignored("*.megatron.main_grads_dtype", "gradients have the type of grad_reduce_dtype", ("float32",)),
    Ignored("*.megatron.exp_avg*_dtype", "the optimizer's state has the type of archon.master_dtype", ("float32",)),
    Ignored("*.megatron.async_save", "trainer.async_save writes checkpoints in the background"),
    Ignored("*.megatron.use_checkpoint_opt_param_scheduler", "a resumed run continues its own learning-rate schedule"),
    Ignored("*.megatron.distribute_saved_activations", "activations are sharded over the tensor-parallel ranks"),
    Ignored("*.megatron.moe_*", _DISPATCH),
    Ignored("*.megatron.enable_chunked_logits", _HEAD),
    Ignored("*.megatron.lm_head_loss_chunk_size", _HEAD),
    Ignored("*.megatron.cross_entropy_loss_fusion", _HEAD),
    Ignored("*.megatron.enable_fp32_lm_head", "the head's products have the type of dtype, its log-softmax is float32"),
    Ignored("*.megatron.entropy_requires_grad", "actor.entropy_coef decides whether the entropy has a gradient"),
    Ignored("*.megatron.bridge_type", _CONVERSION),
    Ignored("*.megatron.use_mbridge_save", _CONVERSION),
    Ignored("*.megatron.use_bridge_for_update_weights", _CONVERSION),
    Ignored("*.tree_training_mode", "enable_tree_training=true shares prefixes, in one way", ("disabled",)),
    Ignored("*.dta_block_size", "attention over shared prefixes is not computed in blocks"),
    _refused("*.vision_dp", ("false",), "there are no vision models"),
    Ignored("rollout.lora_name", _UNNAMED),
    _refused("*.archon.fp8_config", ("null", "mode=disabled"), _FP8, "FP8 training"),
    Ignored("*.archon.ac_preserve_rng_state", "recomputation always restores the RNG state", ("true",)),
    _refused("*.optimizer.offload", ("false",), "optimizer state stays on the device"),
    _refused(
        "*.optimizer.warmup_steps",
        ("null",),
        "set optimizer.warmup_steps_proportion to the share of steps that warm up",
    ),
    Ignored("*.optimizer.initial_loss_scale", _LOSS_SCALE),
    Ignored("*.optimizer.min_loss_scale", _LOSS_SCALE),
    Ignored("*.optimizer.loss_scale_window", _LOSS_SCALE),
    Ignored("*.optimizer.hysteresis", _LOSS_SCALE),
    # Algorithms
    Ignored("*.group_size", "groups are the samples of one prompt", same_as="gconfig.n_samples"),
    _refused("actor.group_adv_norm", ("false",), "set actor.adv_norm.mean_level=group"),
    Ignored("*.max_new_tokens", "gconfig.max_new_tokens limits generation", same_as="gconfig.max_new_tokens"),
    Ignored("*.log_agent_stats", _AGENT_STATS, ("false",)),
    Ignored("*.log_agent_stats_keys", _AGENT_STATS),
)
