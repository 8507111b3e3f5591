"""The gated delta rule by the Triton kernels of flash-linear-attention (package ``fla-core``), if it is installed."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor


def takes(x: Tensor) -> bool:
    """Whether the kernels are installed and take tensors like ``x``: 16-bit types on CUDA."""
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and find_spec("fla") is not None


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    lengths: tuple[int, ...],
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``rule.gated_delta_rule``."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    copies = v.shape[1] // q.shape[1]
    q, k = (x if copies == 1 else x.repeat_interleave(copies, dim=1) for x in (q, k))
    decodes = max(lengths, default=0) == 1 and not torch.is_grad_enabled()
    apply = fused_recurrent_gated_delta_rule if decodes else chunk_gated_delta_rule
    starts = torch.tensor([0, *lengths]).cumsum(0).to(q.device, non_blocking=True)
    out, final = apply(
        q[None],
        k[None],
        v[None],
        g=log_decay.float()[None],
        beta=beta[None],
        initial_state=initial,
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=starts,
    )
    return out[0], final
