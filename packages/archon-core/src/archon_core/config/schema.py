"""The options that core knows, as typed dataclasses. Names are those that AReaL's users know.

Plugins add theirs with ``ConfigSection``. Every field has a default, so that a file names only what it changes.
A docstring's ``Attributes`` entry is the option's documentation: the reference page is made from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from archon_core.generation import GenerationConfig


@dataclass
class MicroBatchSpec:
    """How a batch is split into micro-batches (``actor.mb_spec``). The split never changes the numbers.

    Attributes:
        n_mbs: least number of micro-batches.
        max_tokens_per_mb: most tokens in a micro-batch; null for no limit.
        granularity: sequences that stay together, such as a prompt's samples.
        n_mbs_divisor: the number of micro-batches is a multiple of this.
        packing_algorithm: ``ffd`` (first fit decreasing) or ``kk`` (Karmarkar-Karp, evenest).
    """

    n_mbs: int = 1
    max_tokens_per_mb: int | None = None
    granularity: int = 1
    n_mbs_divisor: int = 1
    packing_algorithm: str = "ffd"


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule (``actor.optimizer``).

    Attributes:
        type: ``adamw``, ``adam``, ``sgd`` or ``muon`` (for matrices of layers, each expert's by itself; the rest takes
            adamw).
        lr: peak learning rate.
        weight_decay: decoupled for adamw and muon; norms and biases are never decayed.
        beta1: first moment's decay; momentum for sgd and muon.
        beta2: second moment's decay.
        eps: added to the second moment's root.
        gradient_clipping: largest global gradient norm; 0 switches clipping off.
        lr_scheduler_type: ``constant``, ``linear``, ``cosine`` or ``wsd`` (warm-up, stable, decay).
        warmup_steps_proportion: share of all steps in which the rate rises linearly. With n warm-up steps, the first
            step uses ``lr`` / n, not 0, and step n uses ``lr``.
        decay_steps_proportion: share of all steps in which ``wsd`` decays, at the end.
        min_lr_ratio: lowest rate of a decaying schedule, as a share of ``lr``.
    """

    type: str = "adamw"
    lr: float = 1e-5
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    gradient_clipping: float = 1.0
    lr_scheduler_type: str = "constant"
    warmup_steps_proportion: float = 0.0
    decay_steps_proportion: float = 0.1
    min_lr_ratio: float = 0.0


@dataclass
class ArchonOptions:
    """Options of the Archon engine (``actor.archon``).

    Attributes:
        pp_schedule: pipeline schedule; used when the layout has p above 1.
        pp_layers_per_stage: most layers of a stage, from which the number of stages follows; null takes as many stages
            as the schedule needs, two per rank where it takes any number.
        pp_first_stage_less_layers: by how many layers the first stage is shorter, which also has the embedding; null
            balances by cost.
        pp_last_stage_less_layers: the same of the last stage, which also has the head.
        pp_reduce_grad_per_microbatch: sum gradients over data ranks after every micro-batch, which keeps them sharded
            in between; false sums them once, at the end of the step.
        pp_record_step: number of the optimizer step, from 1, whose pipeline actions are timed and written to
            ``pipeline-<role>.json`` in the run folder, for ``archon pipeline show --run``; null times none.
        enable_compile: torch.compile of every block; on a CPU only when it is written.
        ac_mode: activation checkpointing: ``none``, ``selective``, ``full`` or ``memory_budget`` (needs
            ``enable_compile``). Takes effect when ``gradient_checkpointing`` is true.
        selective_ac_option: ``op`` keeps what matrix products, attention and collectives gave and recomputes the rest;
            N recomputes every Nth block as a whole.
        ac_memory_budget: share of activations that ``memory_budget`` keeps: 0.0 recomputes everything, 1.0 nothing.
        ac_debug: measure in the first step what every block keeps and recomputes, and write it to
            ``ac_debug-rank0.txt`` in the run folder.
        offload_params: keep parameters, gradients and optimizer state in host memory; a block's parameters are on the
            device while it runs.
        reshard_after_forward_policy: ``always`` frees whole weights between forward and backward, ``never`` keeps
            them; ``default`` keeps those of the last units, and all of them in a pipeline.
        use_deterministic_algorithms: bit-identical runs.
        attn_type: ``varlen``, ``flex`` or ``sdpa``; null chooses by device.
        moe_router_dtype: ``fp32``, or null for the compute type.
        master_dtype: type in which weights are kept and updated; null takes float32 beside bfloat16 computation, and
            ``dtype`` where nothing is trained.
        model: name of the model spec to use; null chooses by the checkpoint's ``model_type``.
        moe: name of the mixture-of-experts block; null takes the only one installed.
        moe_routing_replay: tokens of rollouts go to the experts that they went to there, in every pass of this engine,
            instead of where its own routers would send them. Needs ``rollout.return_routed_experts``.
        strict: a decision that changes what was asked is an error.
    """

    pp_schedule: str = "Interleaved1F1B"
    pp_layers_per_stage: int | None = None
    pp_first_stage_less_layers: int | None = None
    pp_last_stage_less_layers: int | None = None
    pp_reduce_grad_per_microbatch: bool = False
    pp_record_step: int | None = None
    enable_compile: bool = True
    ac_mode: str = "selective"
    selective_ac_option: str = "op"
    ac_memory_budget: float = 0.5
    ac_debug: bool = False
    offload_params: bool = False
    reshard_after_forward_policy: str = "default"
    use_deterministic_algorithms: bool = False
    attn_type: str | None = None
    moe_router_dtype: str | None = "fp32"
    master_dtype: str | None = None
    model: str | None = None
    moe: str | None = None
    moe_routing_replay: bool = False
    strict: bool = False


@dataclass
class EngineConfig:
    """One model in training or in use: ``actor``, ``critic``, ``ref`` or ``teacher``.

    Attributes:
        backend: engine and layout, such as ``archon:d4t2``. Empty for critic, ref and teacher: the actor's.
        path: checkpoint folder in Hugging Face's form, or a hub id.
        init_from_scratch: random weights from the seed instead of the checkpoint's.
        model_config: a Hugging Face ``config.json`` written in place, instead of ``path``. Quotes make a value a text.
        is_critic: a value head instead of the language-model head.
        dtype: compute type: ``float32``, ``bfloat16`` or ``float64``; null takes float32 on CPU, bfloat16 elsewhere.
        grad_reduce_dtype: type in which gradients are summed over ranks; null takes float32, float64 for float64.
        temperature: logits are divided by it before log-probabilities are taken.
        gradient_checkpointing: recompute activations in backward as ``archon.ac_mode`` says.
        disable_dropout: no dropout in training.
        pad_to_maximum: pad every micro-batch to ``mb_spec.max_tokens_per_mb``.
        batch_align_to: pad every micro-batch to a multiple of this many tokens.
        enable_tree_training: share prefixes between sequences.
        mb_spec: the split into micro-batches.
        optimizer: null for a model that is not trained.
        archon: options of the Archon engine.
    """

    backend: str = ""
    path: str | None = None
    init_from_scratch: bool = False
    model_config: dict[str, Any] | None = None
    is_critic: bool = False
    dtype: str | None = None
    grad_reduce_dtype: str | None = None
    temperature: float = 1.0
    gradient_checkpointing: bool = False
    disable_dropout: bool = True
    pad_to_maximum: bool = False
    batch_align_to: int = 1
    enable_tree_training: bool = False
    mb_spec: MicroBatchSpec = field(default_factory=MicroBatchSpec)
    optimizer: OptimizerConfig | None = field(default_factory=OptimizerConfig)
    archon: ArchonOptions = field(default_factory=ArchonOptions)


@dataclass
class RolloutConfig:
    """Where completions come from.

    Attributes:
        backend: inference engine and its sizes, such as ``local`` or ``sglang:d4t2``.
        max_batch_size: most sequences that the local engine decodes side by side.
        return_routed_experts: completions tell which experts every token went to, which
            ``actor.archon.moe_routing_replay`` needs.
    """

    backend: str = "local"
    max_batch_size: int = 256
    return_routed_experts: bool = False


@dataclass
class ClusterConfig:
    """The machines.

    Attributes:
        n_nodes: machines.
        n_gpus_per_node: accelerators per machine, or processes per machine on CPU. Together they bound the sum
            of the engines' world sizes.
        fileroot: folder under which run folders are made: ``<fileroot>/<experiment_name>/<trial_name>``.
    """

    n_nodes: int = 1
    n_gpus_per_node: int = 8
    fileroot: str = "runs"


@dataclass
class SchedulerConfig:
    """How processes are started.

    Attributes:
        type: ``local``, or a launcher that a plugin brings (``ray``, ``slurm``).
    """

    type: str = "local"


@dataclass
class TokenizerConfig:
    """The tokenizer, when it does not come with the checkpoint.

    Attributes:
        kind: ``pretrained`` reads ``tokenizer_path`` or ``actor.path``; ``characters`` has one token per character
            that the data contains, held-out records included; ``bpe`` is trained on the same text.
        vocab_size: size of a ``bpe`` vocabulary.
    """

    kind: str = "pretrained"
    vocab_size: int = 4096


@dataclass
class DataConfig:
    """The data set.

    Attributes:
        dataset: name of a dataset plugin: ``jsonl``, ``hf``, ``arithmetic``, ...
        path: file, folder or hub id for the datasets that read one.
        validation_path: the same for the held-out split; null takes ``validation_size`` records off ``path``.
        validation_size: held-out records.
        prompt_key: field of the prompt: text, a number, or a list of messages with ``role`` and ``content``. Dots lead
            into nested objects, as in ``extra_info.question``.
        answer_key: field of the answer, in the same way; null when records have none.
        batch_size: records per training step.
        max_length: longer sequences are left out (SFT) or records with longer prompts are (RL); null for no limit.
        overlong: what happens to records that the run could not take in some step, because model, ``gconfig`` or
            ``mb_spec`` allow no sequence of that length: ``error`` refuses them before the first step, ``drop`` leaves
            them out as a recorded decision.
        shuffle: a new order each epoch, from the seed.
    """

    dataset: str = "jsonl"
    path: str | None = None
    validation_path: str | None = None
    validation_size: int = 0
    prompt_key: str = "question"
    answer_key: str | None = "answer"
    batch_size: int = 32
    max_length: int | None = None
    overlong: str = "error"
    shuffle: bool = True


@dataclass
class TrainerConfig:
    """The length of a run and what it writes.

    Attributes:
        max_steps: optimizer steps; null for ``max_epochs`` epochs.
        max_epochs: passes over the training data when ``max_steps`` is null.
        save_every: steps between checkpoints; 0 writes only the last.
        async_save: write checkpoints while training goes on, from a copy of the state on the host.
        keep_last: how many of the last checkpoints are kept; null keeps all.
        keep_every: with ``keep_last``, checkpoints of steps that this divides are kept as well.
        eval_every: steps between evaluations on held-out data; 0 for none but the last.
        eval_size: most held-out records per evaluation; null for all.
        resume: continue from the run folder's last checkpoint; an error when there is none.
        auto_resume: the same when there is one, and start anew when there is none.
        accept_changed: what may have changed since the checkpoint that a resumed run goes on from: ``data``,
            ``validation``, ``tokenizer``, ``chat_template``, ``reward``. A change that is not listed is an error.
        max_restarts: how often the ranks are started again from the last checkpoint after one of them died. Mistakes
            in the configuration or the data are never tried again.
        verify_export: after the run, load the exported checkpoint with transformers and compare logits.
    """

    max_steps: int | None = None
    max_epochs: int = 1
    save_every: int = 0
    async_save: bool = False
    keep_last: int | None = None
    keep_every: int | None = None
    eval_every: int = 0
    eval_size: int | None = None
    resume: bool = False
    auto_resume: bool = False
    accept_changed: list[str] = field(default_factory=list)
    max_restarts: int = 0
    verify_export: bool = False


@dataclass
class ExperimentConfig:
    """A whole run: the top level of a YAML file.

    Attributes:
        experiment_name: groups runs.
        trial_name: names this one.
        seed: every random draw is derived from it.
        algorithm: name of the algorithm: ``sft``, ``grpo``, ...
        reward: name of the reward function, for algorithms that use one.
        tokenizer_path: folder or hub id of the tokenizer; null takes ``actor.path``.
        cluster: the machines.
        scheduler: how processes are started.
        tokenizer: the tokenizer, when it is built from the data.
        actor: the model in training.
        critic: its value model, for algorithms that use one.
        ref: a fixed model to stay close to.
        teacher: a fixed model to learn from.
        rollout: where completions come from.
        gconfig: sampling options.
        data: the data set.
        trainer: the length of the run and what it writes.
    """

    experiment_name: str = "archon"
    trial_name: str = "trial0"
    seed: int = 1
    algorithm: str = "grpo"
    reward: str | None = None
    tokenizer_path: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    actor: EngineConfig = field(default_factory=lambda: EngineConfig(backend="archon:d1"))
    critic: EngineConfig | None = None
    ref: EngineConfig | None = None
    teacher: EngineConfig | None = None
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    gconfig: GenerationConfig = field(default_factory=GenerationConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
