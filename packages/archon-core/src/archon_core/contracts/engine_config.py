"""The options of every training engine: the model, its optimizer, the split into micro-batches.

An engine adds options with a ``ConfigSection``. Names are those of AReaL. Every field has a default, so a file names
only the options that it changes. The ``Attributes`` entry in a docstring documents the option; the reference page is
generated from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import NOT_NEGATIVE, POSITIVE, SHARE, number, one_of, option, path_or_id
from archon_core.contracts.scheduling import SchedulingSpec, SchedulingStrategy

ROLES = ("actor", "critic", "ref", "teacher", "reward_model")
"""The sections of a configuration that describe a model. Each has a separate engine. The first is trained."""

DECAY = number(least=0, below=1)
DTYPE = one_of("float32", "bfloat16", "float64")

MODEL_SIZES = (
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "num_experts_per_tok",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
)
"""Entries of a Hugging Face ``config.json`` that are at least 1 in every model that has them."""


@dataclass
class MicroBatchSpec:
    """The split of a batch into micro-batches (``actor.mb_spec``). It never changes the numbers.

    Attributes:
        n_mbs: minimum number of micro-batches.
        max_tokens_per_mb: maximum number of tokens in a micro-batch; null for no limit.
        granularity: number of consecutive sequences that stay together, such as a prompt's samples.
        n_mbs_divisor: make the number of micro-batches a multiple of this.
        packing_algorithm: ``ffd`` (first fit decreasing) or ``kk`` (Karmarkar-Karp, most even).
    """

    n_mbs: int = option(1, POSITIVE)
    max_tokens_per_mb: int | None = option(None, POSITIVE)
    granularity: int = option(1, POSITIVE)
    n_mbs_divisor: int = option(1, POSITIVE)
    packing_algorithm: str = option("ffd", one_of("ffd", "kk"))


@dataclass
class OptimizerConfig:
    """The optimizer and its learning-rate schedule (``actor.optimizer``).

    Attributes:
        type: ``adamw``, ``adam``, ``sgd`` or ``muon``. ``muon`` updates the matrices of layers (each expert's
            separately) and uses adamw for all other parameters.
        lr: peak learning rate.
        weight_decay: weight decay, decoupled for adamw and muon; never applied to norms and biases.
        beta1: decay of the first moment; momentum for sgd and muon.
        beta2: decay of the second moment.
        eps: constant added to the root of the second moment.
        gradient_clipping: maximum global gradient norm; 0 disables clipping.
        lr_scheduler_type: ``constant``, ``linear``, ``cosine`` or ``wsd`` (warm-up, stable, decay).
        warmup_steps_proportion: share of all steps in which the learning rate rises linearly. With n warm-up steps, the
            first step uses ``lr`` / n, not 0, and step n uses ``lr``.
        decay_steps_proportion: share of all steps, at the end, in which ``wsd`` decays.
        min_lr_ratio: lowest learning rate of a decaying schedule, as a share of ``lr``.
    """

    type: str = option("adamw", one_of("adamw", "adam", "sgd", "muon"))
    lr: float = option(1e-5, NOT_NEGATIVE)
    weight_decay: float = option(0.01, NOT_NEGATIVE)
    beta1: float = option(0.9, DECAY)
    beta2: float = option(0.999, DECAY)
    eps: float = option(1e-8, number(above=0))
    gradient_clipping: float = option(1.0, NOT_NEGATIVE, fix="0 switches it off")
    lr_scheduler_type: str = option("constant", one_of("constant", "linear", "cosine", "wsd"))
    warmup_steps_proportion: float = option(0.0, SHARE)
    decay_steps_proportion: float = option(0.1, SHARE)
    min_lr_ratio: float = option(0.0, SHARE)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Conflicting options."""
        used = self.warmup_steps_proportion + self.decay_steps_proportion
        if self.lr_scheduler_type == "wsd" and used > 1:
            yield (
                "decay_steps_proportion",
                f"found warm-up and decay that together take {used:g} of all steps; allowed is at most 1; lower one",
            )


@dataclass
class EngineConfig:
    """One model and its engine: ``actor``, ``critic``, ``ref``, ``teacher`` or ``reward_model``.

    Attributes:
        backend: engine and layout, such as ``archon:d4t2``. Empty for all but the actor: the actor's.
        path: checkpoint folder in Hugging Face format, or a hub id.
        init_from_scratch: use random weights from the seed instead of the checkpoint's.
        model_config: the content of a Hugging Face ``config.json``, instead of ``path``. Quotes turn a value into a
            text.
        is_critic: use a value head instead of the language-model head.
        dtype: compute type: ``float32``, ``bfloat16`` or ``float64``; null uses float32 on CPUs and bfloat16 elsewhere.
        grad_reduce_dtype: type in which ranks sum gradients; null uses float32, or float64 with float64.
        temperature: divide logits by this before the engine computes log-probabilities.
        gradient_checkpointing: recompute activations in backward, as ``archon.ac_mode`` says.
        disable_dropout: train without dropout.
        pad_to_maximum: pad every micro-batch to ``mb_spec.max_tokens_per_mb``.
        batch_align_to: pad every micro-batch to a multiple of this many tokens.
        enable_tree_training: compute a prefix that several sequences of a micro-batch share once; changes no number.
        mb_spec: the split of a batch into micro-batches.
        optimizer: the optimizer; null for a model that is not trained.
        scheduling_spec: what its processes get; null for nothing special.
        scheduling_strategy: which engine it shares processes with; null lets the sizes decide.
    """

    backend: str = ""
    path: str | None = option(None, path_or_id)
    init_from_scratch: bool = False
    model_config: dict[str, Any] | None = None
    is_critic: bool = False
    dtype: str | None = option(None, DTYPE)
    grad_reduce_dtype: str | None = option(None, DTYPE)
    temperature: float = option(1.0, number(above=0), fix="for the most probable token, set gconfig.greedy=true")
    gradient_checkpointing: bool = False
    disable_dropout: bool = True
    pad_to_maximum: bool = False
    batch_align_to: int = option(1, POSITIVE)
    enable_tree_training: bool = False
    mb_spec: MicroBatchSpec = field(default_factory=MicroBatchSpec)
    optimizer: OptimizerConfig | None = field(default_factory=OptimizerConfig)
    scheduling_spec: SchedulingSpec | None = None
    scheduling_strategy: SchedulingStrategy | None = None

    def problems(self) -> Iterator[tuple[str, str]]:
        """Sizes in ``model_config`` that no model can have."""
        for name in MODEL_SIZES:
            size = (self.model_config or {}).get(name)
            if isinstance(size, int | float) and size < 1:
                yield f"model_config.{name}", f"found {size}; allowed is 1 or more; correct it, or leave it out"
