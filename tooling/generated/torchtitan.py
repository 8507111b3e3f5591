"""The table of docs/from-torchtitan.md: torchtitan's TOML options and the corresponding options of Archon.

torchtitan's names come from ``torchtitan/config/job_config.py``, of the last version with TOML files. A test checks
that Archon's options exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from generated.tables import code, table


@dataclass(frozen=True)
class Row:
    """One option of torchtitan.

    Attributes:
        section: TOML table.
        option: name in the table.
        ours: Archon's options, or a layout letter such as ``d`` of ``actor.backend``; empty if there is none.
        note: the difference, or Archon's behaviour without an option.
    """

    section: str
    option: str
    ours: tuple[str, ...]
    note: str = ""


LAYOUT = "actor.backend"

ROWS = (
    Row("job", "dump_folder", ("cluster.fileroot",), "run folders are `<fileroot>/<experiment_name>/<trial_name>`"),
    Row("model", "name", ("actor.path",), "the checkpoint's `model_type` chooses the model; `archon.model` names one"),
    Row("model", "flavor", ("actor.model_config",), "sizes come from a `config.json` in a folder, or from this option"),
    Row("model", "hf_assets_path", ("actor.path", "tokenizer_path"), "one folder or hub id has weights and tokenizer"),
    Row("model", "converters", (), "no float8 in this version"),
    Row("training", "steps", ("trainer.max_steps",)),
    Row("training", "local_batch_size", ("data.batch_size",), "`data.batch_size` is the whole batch, over all ranks"),
    Row("training", "global_batch_size", ("data.batch_size",), "number of prompts per step in reinforcement learning"),
    Row("training", "seq_len", ("data.max_length",), "longest sequence; batches are packed, not padded to it"),
    Row("training", "max_norm", ("actor.optimizer.gradient_clipping",)),
    Row("training", "dataset", ("data.dataset",)),
    Row("training", "dataset_path", ("data.path",)),
    Row("training", "mixed_precision_param", ("actor.dtype",)),
    Row("training", "mixed_precision_reduce", ("actor.grad_reduce_dtype",)),
    Row("training", "dtype", ("actor.archon.master_dtype",)),
    Row("training", "enable_cpu_offload", ("actor.archon.offload_params",)),
    Row("training", "gc_freq", (), "Archon does not control the garbage collector"),
    Row("parallelism", "data_parallel_shard_degree", (f"{LAYOUT}:d",), "write the number: -1 is not derived"),
    Row("parallelism", "data_parallel_replicate_degree", (f"{LAYOUT}:r",)),
    Row("parallelism", "tensor_parallel_degree", (f"{LAYOUT}:t",), "sequence-parallel always"),
    Row("parallelism", "context_parallel_degree", (f"{LAYOUT}:c",), "exchanges heads or gathers keys (`cp_style`)"),
    Row("parallelism", "pipeline_parallel_degree", (f"{LAYOUT}:p",)),
    Row(
        "parallelism", "expert_parallel_degree", (f"{LAYOUT}:e",), "any size that divides, with any expert tensor size"
    ),
    Row("parallelism", "expert_tensor_parallel_degree", (f"{LAYOUT}:t",), "`t` of the `ffn` part of a hybrid layout"),
    Row("parallelism", "pipeline_parallel_schedule", ("actor.archon.pp_schedule",), "Archon has its own schedules"),
    Row("parallelism", "pipeline_parallel_layers_per_stage", ("actor.archon.pp_layers_per_stage",)),
    Row(
        "parallelism",
        "pipeline_parallel_first_stage_less_layers",
        ("actor.archon.pp_first_stage_less_layers",),
        "default 1 in torchtitan; Archon uses the embedding's cost",
    ),
    Row(
        "parallelism",
        "pipeline_parallel_last_stage_less_layers",
        ("actor.archon.pp_last_stage_less_layers",),
        "default 1 in torchtitan; Archon uses the head's cost",
    ),
    Row(
        "parallelism",
        "pipeline_parallel_microbatch_size",
        ("actor.mb_spec.n_mbs", "actor.mb_spec.max_tokens_per_mb"),
        "set the number of micro-batches, or limit their tokens",
    ),
    Row("parallelism", "pipeline_parallel_schedule_csv", (), "write your own schedule as a function in a plugin"),
    Row("parallelism", "fsdp_reshard_after_forward", ("actor.archon.reshard_after_forward_policy",)),
    Row("parallelism", "disable_loss_parallel", (), "the head is always fused and vocabulary-parallel"),
    Row("parallelism", "enable_async_tensor_parallel", (), "not in this version"),
    Row("parallelism", "context_parallel_rotate_method", (), "there is no ring"),
    Row("parallelism", "expert_parallel_comm_backend", (), "torch's all-to-all; a plugin can add another dispatch"),
    Row("activation_checkpoint", "mode", ("actor.archon.ac_mode",), "with `actor.gradient_checkpointing: true`"),
    Row(
        "activation_checkpoint",
        "selective_ac_option",
        ("actor.archon.selective_ac_option",),
        'default "2" in torchtitan, `op` in Archon',
    ),
    Row("activation_checkpoint", "memory_budget", ("actor.archon.ac_memory_budget",)),
    Row("activation_checkpoint", "preserve_rng_state", (), "random state is always restored"),
    Row("activation_checkpoint", "debug", ("actor.archon.ac_debug",), "measures the first step"),
    Row(
        "compile",
        "enable",
        ("actor.archon.enable_compile",),
        "default false in torchtitan, true in Archon; compiles blocks only",
    ),
    Row("compile", "components", (), "blocks are compiled; the loss is part of the fused head"),
    Row("optimizer", "name", ("actor.optimizer.type",)),
    Row("optimizer", "lr", ("actor.optimizer.lr",)),
    Row("optimizer", "beta1", ("actor.optimizer.beta1",)),
    Row("optimizer", "beta2", ("actor.optimizer.beta2",), "default 0.95 in torchtitan, 0.999 in Archon"),
    Row("optimizer", "eps", ("actor.optimizer.eps",)),
    Row("optimizer", "weight_decay", ("actor.optimizer.weight_decay",), "Archon never decays norms and biases"),
    Row("optimizer", "implementation", (), "fused if the device supports it, else foreach"),
    Row("optimizer", "early_step_in_backward", (), "excluded by clipping by the global norm"),
    Row(
        "lr_scheduler",
        "warmup_steps",
        ("actor.optimizer.warmup_steps_proportion",),
        "a share of all steps instead of a number",
    ),
    Row(
        "lr_scheduler",
        "decay_ratio",
        ("actor.optimizer.lr_scheduler_type", "actor.optimizer.decay_steps_proportion"),
        "with `wsd`",
    ),
    Row("lr_scheduler", "decay_type", ("actor.optimizer.lr_scheduler_type",)),
    Row("lr_scheduler", "min_lr_factor", ("actor.optimizer.min_lr_ratio",)),
    Row("checkpoint", "enable", ("trainer.save_every",), "0 writes a checkpoint only at the end"),
    Row("checkpoint", "interval", ("trainer.save_every",)),
    Row("checkpoint", "folder", (), "`checkpoints/` of the run folder"),
    Row("checkpoint", "initial_load_path", ("actor.path",), "a Hugging Face folder; `archon convert` writes one"),
    Row("checkpoint", "last_save_in_hf", (), "every run writes `export/` in Hugging Face format at its end"),
    Row("checkpoint", "async_mode", ("trainer.async_save",)),
    Row("checkpoint", "keep_latest_k", ("trainer.keep_last",), "default 10 in torchtitan; Archon keeps all"),
    Row("checkpoint", "export_dtype", (), "`archon convert --dtype`"),
    Row("metrics", "enable_tensorboard", (), "TensorBoard files if it is installed, and always `metrics.jsonl`"),
    Row("metrics", "enable_wandb", ("stats_logger.wandb.mode",), "`online` or `offline`"),
    Row("profiling", "enable_profiling", ("actor.archon.profile_steps",), "a range of steps instead of a frequency"),
    Row("validation", "freq", ("trainer.eval_every",)),
    Row("debug", "seed", ("seed",)),
    Row("debug", "deterministic", ("actor.archon.use_deterministic_algorithms",)),
    Row("comm", "init_timeout_seconds", (), "when a rank dies, all ranks end within seconds"),
)


def render_torchtitan() -> str:
    """The table."""
    return table(
        ["torchtitan", "Archon", ""], [[code(f"{row.section}.{row.option}"), _ours(row), row.note] for row in ROWS]
    )


def _ours(row: Row) -> str:
    texts = []
    for option in row.ours:
        name, _, letter = option.partition(":")
        texts.append(f"{code(letter)} of {code(name)}" if letter else code(option))
    return ", ".join(texts) or "none"
