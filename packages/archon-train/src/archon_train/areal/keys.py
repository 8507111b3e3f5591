"""Tables of AReaL's option names: their names in Archon, and options without effect.

Nothing is dropped silently: unless its value requests what Archon does anyway, an option without effect becomes a
decision with the reason given here, and a value that would change results is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from archon_core.contracts.engine_config import ROLES

SECTIONS = frozenset(
    (
        "allocation_mode",
        "async_training",
        "dynamic_bs",
        "enable_offload",
        "eval_gconfig",
        "evaluator",
        "launcher",
        "perf_tracer",
        "recover",
        "saver",
        "stats_logger",
        "total_train_epochs",
        "total_train_n_seqs",
        "total_train_steps",
        "train_dataset",
        "valid_dataset",
    )
)
"""Top-level names that identify a file in AReaL's format."""

RENAMED = {
    "model": "actor",
    "total_train_epochs": "trainer.max_epochs",
    "total_train_steps": "trainer.max_steps",
    "train_dataset.path": "data.path",
    "train_dataset.batch_size": "data.batch_size",
    "train_dataset.shuffle": "data.shuffle",
    "train_dataset.max_length": "data.max_length",
    "valid_dataset.path": "data.validation_path",
    "saver.freq_steps": "trainer.save_every",
    "evaluator.freq_steps": "trainer.eval_every",
    "actor.behav_imp_weight_cap": "actor.behave_imp_weight_cap",
    "*.fsdp.offload_params": "*.archon.offload_params",
}
"""AReaL's name -> Archon's; a section moves with its content. ``*`` is a section name, equal on both sides."""

NULL_MEANS = {
    "trainer.save_every": "0",
    "trainer.eval_every": "0",
    "*.mb_spec.n_mbs": "1",
}
"""Options that AReaL's files may set to null -> Archon's equivalent value."""

DATASETS = {
    "openai/gsm8k": {"data.hf.name": "main", "data.hf.validation_split": "test", "reward": "gsm8k"},
}
"""Hub ids of data sets that AReaL's code knows -> the options that it fills in."""

DEFAULTS = {
    "actor.dtype": "bfloat16",
    "actor.optimizer.lr": "0.001",
    "actor.optimizer.warmup_steps_proportion": "0.001",
    "gconfig.max_new_tokens": "16384",
    "gconfig.max_tokens": "32768",
    "data.batch_size": "1",
    "cluster.n_nodes": "32",
}
"""Options with another default in AReaL -> that default. Omitting one from an AReaL file records a decision."""

PIPELINE_DEFAULTS = {
    "actor.archon.pp_first_stage_less_layers": "1",
    "actor.archon.pp_last_stage_less_layers": "1",
}
"""Further such options for layouts with a pipeline."""


@dataclass(frozen=True)
class Ignored:
    """AReaL options that are accepted without effect.

    Attributes:
        path: dotted name; ``*`` matches one name. A section covers all of its options.
        reason: reason of the decision.
        harmless: values, as text, that match Archon's behaviour. ``name=value`` looks inside a section.
        same_as: an option that it repeats; an equal value is harmless.
        otherwise: whether another value becomes a decision or, if it would change results, an error.
    """

    path: str
    reason: str
    harmless: tuple[str, ...] = ()
    same_as: str = ""
    otherwise: Literal["decision", "error"] = "decision"


_ONE_NAME = "a run has one name for all of its parts"
_ONE_ROOT = "everything is written under cluster.fileroot"
_PLACEMENT = "processes are placed by the layout and scheduler.type"
_SYNCHRONOUS = "rollout and training alternate in this version, without queues or off-policy samples"
_SERVERS = "an option of server engines; rollout runs on the trainer's ranks"
_STEPS_ONLY = "trainer.save_every and trainer.eval_every count steps"
_NO_LORA = "there is no LoRA training"

IGNORED = (
    Ignored("*.experiment_name", _ONE_NAME, same_as="experiment_name"),
    Ignored("*.trial_name", _ONE_NAME, same_as="trial_name"),
    Ignored("*.fileroot", _ONE_ROOT, same_as="cluster.fileroot"),
    Ignored("enable_offload", "the trainer stays in device memory", ("false",), otherwise="error"),
    Ignored("async_training", _SYNCHRONOUS, ("false",)),
    Ignored("dynamic_bs", "batches have a fixed number of prompts", ("false",), otherwise="error"),
    Ignored("total_train_n_seqs", "set trainer.max_steps", ("null",), otherwise="error"),
    Ignored("eval_gconfig", "evaluation samples with gconfig", ("null",)),
    Ignored("launcher", _PLACEMENT),
    Ignored("perf_tracer", "there is no tracer in this version", ("null", "enabled=false")),
    Ignored("cluster.name_resolve", "processes find each other through torch.distributed"),
    Ignored("cluster.cluster_name", "nothing depends on the cluster's name", ("local",)),
    Ignored("scheduler.endpoint", _PLACEMENT),
    Ignored("scheduler.deploy_mode", _PLACEMENT),
    Ignored("scheduler.functioncall_service_domain", "rewards are computed in the trainer"),
    Ignored("scheduler.reward_functioncall_config", "rewards are computed in the trainer"),
    Ignored("scheduler.reward_model_path", "rewards are computed in the trainer", ("",)),
    Ignored("scheduler.reward_model_service_url", "rewards are computed in the trainer"),
    # Data
    Ignored("*_dataset.type", "the option algorithm selects the training"),
    Ignored("*_dataset.pin_memory", "records are texts, tokenized in the trainer", ("false",)),
    Ignored("*_dataset.num_workers", "records are read in the trainer's process", ("0",)),
    Ignored("*_dataset.drop_last", "every training batch is full"),
    Ignored("valid_dataset.batch_size", "evaluation takes trainer.eval_size records at once"),
    Ignored("valid_dataset.shuffle", "evaluation always takes the same records in the same order", ("false",)),
    Ignored("valid_dataset.max_length", "data.max_length holds for both splits", ("null",), same_as="data.max_length"),
    # When to write and to evaluate
    Ignored("*.freq_epochs", _STEPS_ONLY, ("null",)),
    Ignored("*.freq_secs", _STEPS_ONLY, ("null",)),
    Ignored("recover.freq_steps", "runs resume from the checkpoints of trainer.save_every", ("null",)),
    Ignored("recover.retries", "trainer.max_restarts sets the number of restarts", ("0",)),
    Ignored("saver.mode", "trainer.async_save writes checkpoints in the background", ("auto", "sync")),
    Ignored("stats_logger.wandb", "metrics go to metrics.jsonl and TensorBoard", ("mode=disabled", "null")),
    Ignored("stats_logger.swanlab", "metrics go to metrics.jsonl and TensorBoard", ("mode=disabled", "null")),
    Ignored("stats_logger.tensorboard", "TensorBoard files are in the run folder", ("null", "path=null")),
    # Rollout
    Ignored("rollout.max_concurrent_rollouts", _SYNCHRONOUS, ("null",)),
    Ignored("rollout.queue_size", _SYNCHRONOUS, ("null",)),
    Ignored("rollout.consumer_batch_size", _SYNCHRONOUS, same_as="data.batch_size"),
    Ignored("rollout.max_head_offpolicyness", _SYNCHRONOUS, ("0",)),
    Ignored("rollout.enable_rollout_tracing", "there is no request tracing in this version", ("false",)),
    Ignored("rollout.check_trajectory_format", "trajectories are typed", ("false",)),
    Ignored("rollout.schedule_policy", _SERVERS, ("round_robin",)),
    Ignored("rollout.tokenizer_path", "a run has one tokenizer", same_as="tokenizer_path"),
    Ignored("rollout.dump_to_file", "completions are not written to files in this version", ("false",)),
    Ignored("rollout.setup_timeout", _SERVERS),
    Ignored("rollout.request_timeout", _SERVERS),
    Ignored("rollout.request_retries", _SERVERS),
    Ignored("rollout.pause_grace_period", _SERVERS),
    Ignored("rollout.openai", "agent workflows are not part of this version", ("null",)),
    Ignored("*.scheduling_spec", _PLACEMENT),
    Ignored("*.scheduling_strategy", _PLACEMENT),
    # Sampling
    Ignored("gconfig.stop", "stop words are not supported; use gconfig.stop_token_ids", ("null",), otherwise="error"),
    Ignored("gconfig.frequency_penalty", "there is no such penalty", ("0", "0.0"), otherwise="error"),
    Ignored("gconfig.ignore_eos", "the end of text always ends a completion", ("false",), otherwise="error"),
    Ignored("gconfig.use_beam_search", "completions are sampled", ("false",), otherwise="error"),
    Ignored("gconfig.skip_special_tokens", "rewards see texts without special tokens", ("true",)),
    Ignored("gconfig.lora_name", _NO_LORA),
    # Engines
    Ignored("*.attn_impl", "attention is chosen by archon.attn_type", ("flash_attention_2",)),
    Ignored("*.weight_update_mode", "the rollout engine decides how it gets weights"),
    Ignored("*.fsdp.wrap_policy", "every layer is an FSDP unit", ("null",)),
    Ignored("*.fsdp.memory_efficient_load", "every rank reads only its shards"),
    Ignored("*.fsdp.per_layer_optim_step", "the optimizer steps once", ("false",)),
    Ignored("*.fsdp.optim_step_prefetch_layers", "the optimizer steps once"),
    Ignored("*.megatron", "options of another engine"),
    Ignored("*.tree_training_mode", "prefixes are not shared between sequences", ("disabled",)),
    Ignored("*.dta_block_size", "prefixes are not shared between sequences"),
    Ignored("*.vision_dp", "there are no vision models", ("false",), otherwise="error"),
    Ignored("*.use_lora", _NO_LORA, ("false",), otherwise="error"),
    Ignored("*.lora_rank", _NO_LORA),
    Ignored("*.lora_alpha", _NO_LORA),
    Ignored("*.target_modules", _NO_LORA),
    Ignored("*.peft_type", _NO_LORA),
    Ignored("*.archon.ac_preserve_rng_state", "recomputation always restores the RNG state", ("true",)),
    Ignored("*.optimizer.offload", "optimizer state stays on the device", ("false",), otherwise="error"),
    Ignored("*.optimizer.initial_loss_scale", "bfloat16 and float32 need no loss scale"),
    Ignored("*.optimizer.min_loss_scale", "bfloat16 and float32 need no loss scale"),
    Ignored("*.optimizer.loss_scale_window", "bfloat16 and float32 need no loss scale"),
    Ignored("*.optimizer.hysteresis", "bfloat16 and float32 need no loss scale"),
    # Algorithms
    Ignored("*.group_size", "groups are the samples of one prompt", same_as="gconfig.n_samples"),
    Ignored("actor.group_adv_norm", "set actor.adv_norm.mean_level=group", ("false",), otherwise="error"),
    Ignored("*.max_new_tokens", "gconfig.max_new_tokens limits generation", same_as="gconfig.max_new_tokens"),
    Ignored("actor.log_agent_stats", "agent workflows are not part of this version", ("false",)),
    Ignored("actor.log_agent_stats_keys", "agent workflows are not part of this version"),
)

_SECTION_NAMES = SECTIONS | {*ROLES, "rollout"}


def fits(pattern: str, path: str) -> bool:
    """Whether a dotted name matches a pattern of the tables. A leading ``*`` matches any section of AReaL's files."""
    rows, keys = pattern.split("."), path.split(".")
    if len(rows) != len(keys) or (rows[0] == "*" and keys[0] not in _SECTION_NAMES):
        return False
    return all(fnmatchcase(key, row) for key, row in zip(keys, rows, strict=True))
