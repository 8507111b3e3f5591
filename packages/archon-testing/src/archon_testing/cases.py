"""``Case``: one comparison of a layout with one process: model, layout, micro-batches, dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from archon_core.contracts.adapters import AdapterSpec
from archon_core.contracts.model import ModelSpec
from archon_core.errors import UnknownNameError, did_you_mean
from archon_core.plugins import registry
from archon_engine.options.context_style import AUTO, ContextStyle

DtypeName = Literal["float64", "float32"]
Variant = Literal["untied", "tied", "critic", "lora"]
LORA: Variant = "lora"
"""The untied model with adapters of archon-lora. Every model has it, but only on request: the weights of the model
itself are frozen, so their gradients go unchecked."""

Check = Literal["training", "initial", "resume", "precision"]
"""What a case checks: a training run; initial weights without a checkpoint; a run resumed by a new engine from a
training state; one step in bfloat16 with float32 weights."""
Prefixes = Literal["distinct", "apart", "shared"]
"""Prefixes of the sequences of a batch: none is shared; some are, and every sequence is computed apart; some are, and
computed once (``enable_tree_training``)."""
Recompute = Literal["none", "selective", "full"]
"""Activation checkpointing: ``archon.ac_mode`` of a run with ``gradient_checkpointing``, or none."""

DTYPES: tuple[DtypeName, ...] = get_args(DtypeName)
BFLOAT16 = "bfloat16"
ONE_PROCESS = "archon:d1"


@dataclass(frozen=True)
class Case:
    """One run of the oracle.

    Attributes:
        model_config: the content of a Hugging Face ``config.json``.
        critic: use a value head instead of the language-model head.
        lora: train adapters of the model instead of its weights.
        layout: with its backend, such as ``archon:d2t2``.
        n_mbs: least number of micro-batches per data rank.
        dtype: of weights and computation; for the check ``precision``, of the reference.
        seed: of weights and batches.
        schedule: pipeline schedule; ``None`` for the engine's default.
        model: name of the model spec; ``None`` for the one of the model type.
        check: what to check.
        recompute: mode of activation checkpointing.
        cp_style: how context ranks share attention (``archon.cp_style``).
        prefixes: whether sequences share prefixes, and whether these are computed once.
        exports: save the weights as ``hf`` at the end, and read the files back.
        resume_on: for the check ``resume``, the layout that resumes; ``None`` for ``layout`` itself.
        resume_schedule: pipeline schedule of ``resume_on``.
    """

    model_config: Mapping[str, Any]
    critic: bool = False
    lora: bool = False
    layout: str = ONE_PROCESS
    n_mbs: int = 1
    dtype: DtypeName = "float64"
    seed: int = 1
    schedule: str | None = None
    model: str | None = None
    check: Check = "training"
    recompute: Recompute = "none"
    cp_style: ContextStyle = AUTO
    prefixes: Prefixes = "distinct"
    exports: bool = False
    resume_on: str | None = None
    resume_schedule: str | None = None

    @property
    def reference(self) -> Case:
        """The same numbers from one process and one micro-batch, with every sequence computed apart."""
        prefixes: Prefixes = "distinct" if self.prefixes == "distinct" else "apart"
        return replace(
            self.on_one_process, n_mbs=1, check="training", recompute="none", prefixes=prefixes, exports=False
        )

    @property
    def on_one_process(self) -> Case:
        """The same run on one process, which also resumes it."""
        return replace(self, layout=ONE_PROCESS, schedule=None, cp_style=AUTO, resume_on=None, resume_schedule=None)

    @property
    def last(self) -> Case:
        """The case on the layout of its last step."""
        if self.resume_on is None:
            return self
        return replace(self, layout=self.resume_on, schedule=self.resume_schedule)

    @property
    def resumed_on(self) -> str:
        """The layout that resumes, such as ``archon:p2-ZBV``; empty if it is ``layout``."""
        schedule = f"-{self.resume_schedule}" if self.resume_schedule else ""
        return f"{self.resume_on}{schedule}" if self.resume_on else ""

    @property
    def compute_dtype(self) -> str:
        """The dtype of forward and backward."""
        return BFLOAT16 if self.check == "precision" else self.dtype

    @property
    def variant(self) -> Variant:
        """The variant, derived from the configuration."""
        if self.critic:
            return "critic"
        if self.lora:
            return LORA
        return "tied" if self.model_config.get("tie_word_embeddings") else "untied"


def allowed_dtypes(spec: ModelSpec) -> tuple[DtypeName, ...]:
    """The dtypes of comparisons: only float32 if the model's modules round to float32 internally."""
    return ("float32",) if spec.rounds_inside else DTYPES


def declared_variants(spec: ModelSpec) -> tuple[Variant, ...]:
    """The variants of a model that its capabilities declare."""
    return tuple(variant for variant in get_args(Variant) if variant == "untied" or variant in spec.capabilities)


def choose_variants(spec: ModelSpec, names: list[str]) -> tuple[Variant, ...]:
    """The variants ``names``, without duplicates; all declared variants if empty.

    Raises:
        UnknownNameError: the model declares no such variant, or archon-lora is not installed.
    """
    declared = declared_variants(spec)
    if LORA in names:
        registry().get(AdapterSpec, LORA)  # raises with the package to install
        declared = (*declared, LORA)
    for name in names:
        if name not in declared:
            raise UnknownNameError(
                f"variant {name!r}: model {spec.name!r} declares {', '.join(declared)}{did_you_mean(name, declared)}"
            )
    return tuple(variant for variant in declared if variant in names) or declared_variants(spec)


def variant_case(model_config: Mapping[str, Any], variant: Variant, **fields: Any) -> Case:
    """The ``Case`` of a variant; ``fields`` are further fields of ``Case``."""
    entries = {**model_config, "tie_word_embeddings": variant == "tied"}
    return Case(entries, critic=variant == "critic", lora=variant == LORA, **fields)
