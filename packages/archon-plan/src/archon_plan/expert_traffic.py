"""Traffic of experts: tokens on their way to the ranks of their experts, and the loads that balancing needs.

One all-to-all over all ep x etp ranks takes tokens to their experts, and one brings results back
(``archon_moe.dispatch.all_to_all``); a token goes once to every rank that holds a part of one of its experts.

Legend: T tokens of one rank between tensor regions, E experts, K experts per token, H hidden size.
"""

from __future__ import annotations

import math

from archon_core.models.anatomy import ExpertsAnatomy
from archon_plan.ledger import Group, Ledger
from archon_plan.setting import Setting
from archon_plan.token_traffic import Passes, TokenSizes

COUNT_BYTES = 8
"""Of a number of tokens."""

INDEX_BYTES = 4
"""Of an expert's index beside a token."""

TOTALS = 2
"""What a layer reports of a step beside the load of each expert: its tokens and the entropy of its router."""

TOTAL_BYTES = 8
"""Of a reported total, in float64."""


def share_of_place(experts: ExpertsAnatomy, ep: int) -> float:
    """Share of the tokens with at least one expert at a given place along ``ep``.

    A balanced router is one that chooses every set of K of the E experts equally often. A place has E / ep of them, so
    the share is 1 - C(E - E / ep, K) / C(E, K), with C the binomial coefficient: K / ep if places are many, 1 if few.
    """
    n, k = experts.n_experts, experts.top_k
    return 1 - math.comb(n - n // ep, k) / math.comb(n, k)


def add_experts(ledger: Ledger, setting: Setting, experts: ExpertsAnatomy, passes: Passes) -> None:
    """Add dispatch and combine of a layer, for a balanced router."""
    ranks, sizes = Group.of("ep", setting.dims), TokenSizes(setting)
    # To the other ranks. They send as many back, and receive as many from here as they send.
    rows = sizes.local * share_of_place(experts, setting.dims.ep) * (ranks.size - 1)
    forward, backward = passes.forward + passes.again, passes.backward
    state = rows * setting.anatomy.hidden_size * sizes.compute
    weights = rows * experts.top_k * sizes.exact
    # Rows and pairs of token and expert, for each rank.
    ledger.add(ranks, "all_to_all", "counts of tokens", ranks.size * 2 * COUNT_BYTES, forward)
    ledger.add_sent(ranks, "all_to_all", "tokens to experts", state * (forward + backward), forward + backward)
    ledger.add_sent(ranks, "all_to_all", "tokens to experts", rows * experts.top_k * INDEX_BYTES * forward, forward)
    ledger.add_sent(ranks, "all_to_all", "tokens to experts", weights * (forward + backward), forward + backward)
    # Recomputation ends with the experts' products, unless a shared expert, which saves tensors too, comes after them.
    returned = passes.forward + backward + (passes.again if experts.shared_intermediate_size else 0)
    ledger.add_sent(ranks, "all_to_all", "results of experts", state * returned, returned)
    if setting.trains:
        _add_balancing(ledger, setting, experts, sizes, forward)


def _add_balancing(ledger: Ledger, setting: Setting, experts: ExpertsAnatomy, sizes: TokenSizes, forward: int) -> None:
    counts = experts.n_experts * COUNT_BYTES
    if setting.aux_loss == "global_batch":
        ledger.add(Group.of("stage", setting.dims), "all_reduce", "loads of experts", counts, forward)
    elif setting.aux_loss == "sequence":
        sequences = max(1, round(sizes.whole / setting.tokens.sequence))
        for axis in ("tp", "cp"):
            ledger.add(Group.of(axis, setting.dims), "all_reduce", "loads of experts", sequences * counts, forward)


def add_reports(ledger: Ledger, setting: Setting, layers: list[ExpertsAnatomy]) -> None:
    """Add the sum over ranks of what the layers of a pipeline rank report once per step."""
    losses = (setting.aux_loss != "none") + setting.z_loss
    totals = sum(experts.n_experts + TOTALS + losses for experts in layers)
    if totals:
        ledger.add(Group.of("stage", setting.dims), "all_reduce", "reports of experts", totals * TOTAL_BYTES, 1)
