"""The options that archon-moe adds to the engine sections ``actor.archon``, ``critic.archon``, ``ref.archon`` and
``teacher.archon``. Imports no torch, since every configuration reads them.

Names follow Megatron-LM, except ``moe_aux_loss``, which selects what the auxiliary loss balances over.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from archon_core.config.rules import NOT_NEGATIVE, broken_rules, one_of, option
from archon_core.errors import ConfigError

if TYPE_CHECKING:
    from archon_engine.options.archon import ArchonEngineConfig

AUX_LOSSES = ("none", "sequence", "global_batch")


@dataclass
class MoEOptions:
    """Implementation and load balancing of experts (``actor.archon``).

    Attributes:
        moe_grouped_gemm: true computes all experts at once with ``torch.nn.functional.grouped_mm``, false one after the
            other; null chooses by device and dtype.
        moe_aux_loss: what the auxiliary loss balances experts over: ``sequence`` (each sequence by itself; independent
            of the layout and of the split into micro-batches), ``global_batch`` (the tokens of a micro-batch on all
            ranks), or ``none``.
        moe_aux_loss_coef: weight of the auxiliary loss, which is 1 per layer when experts are equally loaded.
        moe_z_loss_coef: weight of the z-loss, the mean squared log-sum-exp of the router logits (arXiv:2202.08906); 0
            disables it.
        moe_bias_update_rate: after every step, raise the choice bias of experts below the mean load by this rate and
            lower that of experts above it (arXiv:2408.15664). For models with a choice bias; 0 disables the update.
    """

    moe_grouped_gemm: bool | None = None
    moe_aux_loss: str = option("none", one_of(*AUX_LOSSES))
    moe_aux_loss_coef: float = option(1e-3, NOT_NEGATIVE, fix="0 disables it")
    moe_z_loss_coef: float = option(0.0, NOT_NEGATIVE, fix="0 disables it")
    moe_bias_update_rate: float = option(0.0, NOT_NEGATIVE, fix="0 disables it")


def read_options(options: object, *, section: str = "archon") -> MoEOptions:
    """Read this package's options from the options of an engine; a missing one has its default.

    Args:
        section: name of the section, for messages.

    Raises:
        ConfigError: a value is invalid.
    """
    own = MoEOptions()
    own = MoEOptions(**{name: getattr(options, name, default) for name, default in vars(own).items()})
    for name, text in broken_rules(own):
        raise ConfigError(f"{section}.{name}: {text}")
    return own


def check_options(
    config: ArchonEngineConfig, *, role: str, explicit: Collection[str], has_experts: bool | None
) -> list[str]:
    """Problems with the options of the section ``role``, one sentence each (``archon_core.plugins.MoESpec.check``)."""
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
