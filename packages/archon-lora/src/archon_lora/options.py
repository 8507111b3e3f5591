"""The options that archon-lora adds to the sections of models. Imports no torch. Names follow AReaL."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import POSITIVE, one_of, option

ALL_LINEAR = "all-linear"
"""PEFT's name for every projection of the decoder layers."""


@dataclass
class LoraOptions:
    """Low-rank adapters (arXiv:2106.09685) of a model (``actor``).

    Attributes:
        use_lora: train low-rank adapters, and keep the model's own weights as they are.
        lora_rank: rank r of every adapter.
        lora_alpha: an adapter adds ``lora_alpha / lora_rank`` times its product.
        target_modules: last names of the projections to adapt, as transformers names them, such as ``q_proj``;
            empty, or ``all-linear``, adapts every projection of the decoder layers.
        peft_type: kind of adapter; only ``lora``.
        lora_path: folder in PEFT's format whose adapters training starts from; null draws new ones from the seed.
    """

    use_lora: bool = False
    lora_rank: int = option(32, POSITIVE)
    lora_alpha: int = option(16, POSITIVE)
    target_modules: list[str] = field(default_factory=list)
    peft_type: str = option("lora", one_of("lora"))
    lora_path: str | None = None


def check_options(config: Any, *, role: str, explicit: Collection[str]) -> list[str]:
    """Problems with the options of the section ``role``, one sentence each (``AdapterSpec.check``)."""
    problems = []
    if config.use_lora and config.optimizer is None:
        problems.append(
            f"{role}.use_lora: found true for a model that is not trained; set {role}.optimizer, or leave it out"
        )
    if config.use_lora and config.is_critic:
        problems.append(
            f"{role}.use_lora: found true for a critic, whose new value head must be trained whole; set it to false"
        )
    return problems
