"""Tables of AReaL's option names and values: their names, equivalents and other defaults in Archon.

An option that Archon has needs a row only if its name, its null or its default differs; ``rules`` has the options that
Archon does not have.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from archon_core.contracts.engine_config import ROLES

SECTIONS = frozenset(
    (
        "allocation_mode",
        "async_training",
        "evaluator",
        "launcher",
        "memory_profiler",
        "perf_tracer",
        "post_exit_hook",
        "recover",
        "saver",
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
    "teacher.train": "teacher",
    "total_train_epochs": "trainer.max_epochs",
    "total_train_steps": "trainer.max_steps",
    "train_dataset.path": "data.path",
    "train_dataset.batch_size": "data.batch_size",
    "train_dataset.shuffle": "data.shuffle",
    "train_dataset.max_length": "data.max_length",
    "train_dataset.split": "data.hf.split",
    "valid_dataset.path": "data.validation_path",
    "valid_dataset.split": "data.hf.validation_split",
    "saver.freq_steps": "trainer.save_every",
    "evaluator.freq_steps": "trainer.eval_every",
    "evaluator.eval_before_train": "trainer.eval_before_train",
    "actor.behav_imp_weight_cap": "actor.behave_imp_weight_cap",
    "actor.behav_imp_weight_mode": "actor.behave_imp_weight_mode",
    "*.fsdp.offload_params": "*.archon.offload_params",
}
"""AReaL's name -> Archon's; a section moves with its content. ``*`` is a section name, equal on both sides."""

NULL_MEANS = {
    "trainer.save_every": "0",
    "trainer.eval_every": "0",
    "*.mb_spec.n_mbs": "1",
}
"""Options that AReaL's files may set to null -> Archon's equivalent value."""

NULL_SECTIONS = ("stats_logger.*",)
"""Sections that AReaL's files may set to null, for their defaults."""

DATASETS = {
    "openai/gsm8k": {"data.hf.name": "main", "data.hf.validation_split": "test", "reward": "gsm8k"},
    "Anthropic/hh-rlhf": {"data.hf.validation_split": "test", "data.equal_pairs": "drop"},
}
"""Hub ids of data sets that AReaL's code knows -> the options that it fills in."""

DATASET_REASONS = {
    "data.equal_pairs": "AReaL keeps pairs of equal answers; they have no gradient, but count in the mean",
}
"""Such options that AReaL does not have -> reason of the decision."""

DEFAULTS = {
    "*.dtype": "bfloat16",
    "*.disable_dropout": "false",
    "*.archon.enable_compile": "false",
    "*.optimizer.lr": "0.001",
    "*.optimizer.warmup_steps_proportion": "0.001",
    "gconfig.max_new_tokens": "16384",
    "gconfig.max_tokens": "32768",
    "eval_gconfig.max_new_tokens": "16384",
    "eval_gconfig.max_tokens": "32768",
    "data.batch_size": "1",
    "cluster.n_nodes": "32",
    "trainer.eval_before_train": "false",
}
"""Options with another default in AReaL -> that default, which holds in AReaL's files. ``*`` is a model's section."""

PIPELINE_DEFAULTS = {
    "*.archon.pp_first_stage_less_layers": "1",
    "*.archon.pp_last_stage_less_layers": "1",
}
"""Further such options for layouts with a pipeline."""

KEPT_DEFAULTS = {
    "cluster.fileroot": "/tmp does not keep results",
    "cluster.name_resolve.nfs_record_root": "null is cluster.fileroot, which all machines share",
    "rollout.agent.admin_api_key": "everyone knows it; null draws one",
}
"""Options with another default in AReaL that have Archon's default in AReaL's files, too -> why."""

MEGATRON_TRANSLATED = {
    "virtual_pipeline_parallel_size": "archon.pp_schedule",
    "recompute_granularity": "archon.ac_mode",
    "recompute_method": "archon.ac_mode",
    "recompute_num_layers": "archon.ac_mode",
    "recompute_modules": "archon.ac_mode",
    "use_deterministic_algorithms": "archon.use_deterministic_algorithms",
    "main_params_dtype": "archon.master_dtype",
    "moe_router_dtype": "archon.moe_router_dtype",
    "moe_router_bias_update_rate": "archon.moe_bias_update_rate",
    "moe_z_loss_coeff": "archon.moe_z_loss_coef",
}
"""Options under ``megatron`` -> the options of the Archon engine that they become (``areal.megatron``)."""

_SECTION_NAMES = SECTIONS | {*ROLES, "rollout", "stats_logger"}


def fits(pattern: str, path: str) -> bool:
    """Whether a dotted name matches a pattern of the tables. A leading ``*`` matches any section of AReaL's files."""
    rows, keys = pattern.split("."), path.split(".")
    if len(rows) != len(keys) or (rows[0].startswith("*") and keys[0] not in _SECTION_NAMES):
        return False
    return all(fnmatchcase(key, row) for key, row in zip(keys, rows, strict=True))
