"""The options that archon-lora adds to the sections of models. Imports no torch. Names follow AReaL."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from archon_core.config.rules import POSITIVE, one_of, option
from archon_core.contracts.decisions import Decision
from archon_core.contracts.preview import EnginePreview

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


def file_options(file_config: Mapping[str, Any]) -> dict[str, Any]:
    """``file_options`` of the ``AdapterSpec``."""
    return {
        "use_lora": True,
        "lora_rank": file_config["r"],
        "lora_alpha": file_config["lora_alpha"],
        "target_modules": list(file_config["target_modules"]),
    }


def preview(config: Any, *, role: str, explicit: Collection[str]) -> EnginePreview:
    """``preview`` of the ``AdapterSpec``: what is wrong with the options of ``role``, and which have no effect."""
    if not config.use_lora:
        defaults = LoraOptions()
        unused = [
            name
            for name in vars(defaults)
            if f"{role}.{name}" in explicit and getattr(config, name) != getattr(defaults, name)
        ]
        found = [(f"{role}.{name}", str(getattr(config, name))) for name in unused]
        reason = f"{role}.use_lora is false"
        return EnginePreview(decisions=tuple(Decision(*option, "no effect", reason) for option in found))
    problems = []
    if config.optimizer is None:
        problems.append(
            f"{role}.use_lora: found true for a model that is not trained; set {role}.optimizer, or leave it out"
        )
    if config.is_critic:
        problems.append(
            f"{role}.use_lora: found true for a critic, whose new value head must be trained whole; set it to false"
        )
    return EnginePreview(tuple(problems))
