"""The options that archon-moe adds to ``actor.archon`` and its like. No torch: they are read with every configuration.

Names are the field's own (Megatron-LM's), with ``moe_aux_loss`` for what its auxiliary loss balances over.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from archon_engine.options.archon import ArchonEngineConfig

AUX_LOSSES = ("none", "sequence", "global_batch")


@dataclass
class MoEOptions:
    """How experts are computed, and how their load is balanced (``actor.archon``).

    Attributes:
        moe_grouped_gemm: compute all experts with torch's ``grouped_mm``; false takes them one by one, null chooses by
            device and type.
        moe_aux_loss: what an auxiliary loss balances experts over: ``sequence`` (each one by itself; the numbers depend
            on no layout and no split into micro-batches), ``global_batch`` (the tokens of a micro-batch on all ranks),
            or ``none``.
        moe_aux_loss_coef: weight of that loss, which is 1 per layer when experts are equally loaded.
        moe_z_loss_coef: weight of the mean squared log-sum-exp of the router's logits (arXiv:2202.08906); 0 for none.
        moe_bias_update_rate: after every step, the choice bias of experts with less than the mean load grows by this
            and that of others falls (arXiv:2408.15664). For models that have such a bias; 0 leaves it as it is.
    """

    moe_grouped_gemm: bool | None = None
    moe_aux_loss: str = "none"
    moe_aux_loss_coef: float = 1e-3
    moe_z_loss_coef: float = 0.0
    moe_bias_update_rate: float = 0.0


def read_options(options: object, *, section: str = "archon") -> MoEOptions:
    """Those of an engine's options that are this package's; defaults for what it has not.

    Args:
        section: their name, for messages.

    Raises:
        ConfigError: a value means nothing, with what it may be and what to write.
    """
    own = MoEOptions()
    own = MoEOptions(**{name: getattr(options, name, default) for name, default in vars(own).items()})
    if own.moe_aux_loss not in AUX_LOSSES:
        raise ConfigError(
            f"{section}.moe_aux_loss: found {own.moe_aux_loss!r}; allowed are {', '.join(AUX_LOSSES)}"
            f"{did_you_mean(str(own.moe_aux_loss), AUX_LOSSES)}"
        )
    for name in ("moe_aux_loss_coef", "moe_z_loss_coef", "moe_bias_update_rate"):
        value = getattr(own, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"{section}.{name}: found {value}; allowed are numbers from 0; 0 switches it off")
    return own


def check_options(
    config: ArchonEngineConfig, *, role: str, explicit: Collection[str], has_experts: bool | None
) -> list[str]:
    """What the section ``role`` asks for and cannot have; see ``archon_core.plugins.MoESpec``."""
    section = f"{role}.archon"
    try:
        own = read_options(config.archon, section=section)
    except ConfigError as error:
        return [str(error)]
    written = [name for name in vars(own) if f"{section}.{name}" in explicit]
    if has_experts is False:
        return [
            f"{section}.{name}: found {getattr(own, name)!r} for a model without experts; leave it out"
            for name in written
            if getattr(own, name) != getattr(MoEOptions(), name)
        ]
    if "moe_aux_loss_coef" in written and own.moe_aux_loss_coef and own.moe_aux_loss == "none":
        return [
            f"{section}.moe_aux_loss_coef: found {own.moe_aux_loss_coef} without an auxiliary loss; set "
            f"{section}.moe_aux_loss to sequence or global_batch"
        ]
    return []
