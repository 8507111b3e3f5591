"""Heads: per-token log-probabilities and entropy without the [T, V] logits, and the critic's values.

``linear_logprobs`` fuses the output projection with log-softmax. It walks over chunks of tokens, keeps two numbers
per token and recomputes a chunk's logits in backward, so that peak memory holds a few chunks instead of several
[T, V] matrices.

Legend: T tokens, H hidden size, V vocabulary, C tokens in a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from archon_core.nn.packed import HeadInputs, OutputName

CHUNK_BYTES = 64 * 2**20
"""Size of one [C, V] buffer. Backward holds two; larger chunks gain no speed that could be measured."""


def linear_logprobs(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float) -> Tensor:
    """``log_softmax(hidden @ weight.T / temperature)`` at the targets: [T], at least fp32, 0 where the target is -1."""
    return _LinearLogSoftmax.apply(hidden_TH, weight_VH, targets_T, temperature, False)[0]


def linear_logprobs_and_entropy(
    hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """As ``linear_logprobs``, with the entropy of each position's distribution in nats: two [T] tensors."""
    return _LinearLogSoftmax.apply(hidden_TH, weight_VH, targets_T, temperature, True)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _token_chunks(tokens: int, vocabulary: int, dtype: torch.dtype) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (vocabulary * dtype.itemsize))
    # Even chunks: 4,096 tokens in chunks of 110 would leave a last one of 26.
    n_chunks = max(1, math.ceil(tokens / rows))
    size = math.ceil(tokens / n_chunks)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, max(size, 1))]


class _LinearLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = _accumulation_dtype(hidden_TH.dtype)
        tokens, vocabulary = hidden_TH.shape[0], weight_VH.shape[0]
        has_target_T = targets_T >= 0
        log_normaliser_T = hidden_TH.new_empty(tokens, dtype=dtype)
        logprobs_T = hidden_TH.new_empty(tokens, dtype=dtype)
        entropy_T = hidden_TH.new_empty(tokens, dtype=dtype) if with_entropy else None
        for chunk in _token_chunks(tokens, vocabulary, dtype):
            logits_CV = _tempered_logits(hidden_TH[chunk], weight_VH, temperature, dtype)
            log_normaliser_C = torch.logsumexp(logits_CV, dim=-1)
            target_logits_C = logits_CV.gather(1, targets_T[chunk].clamp(min=0)[:, None])[:, 0]
            log_normaliser_T[chunk] = log_normaliser_C
            logprobs_T[chunk] = target_logits_C - log_normaliser_C
            if entropy_T is not None:
                # Not log Z - sum p logit: there a rounding of the sum of p counts as often as the logits are large.
                logprobs_CV = logits_CV.sub_(log_normaliser_C[:, None])
                entropy_T[chunk] = -logprobs_CV.exp().mul_(logprobs_CV).sum(-1)
        logprobs_T = torch.where(has_target_T, logprobs_T, 0)
        ctx.temperature = temperature
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, log_normaliser_T, entropy_T)
        if entropy_T is None:
            return logprobs_T, None
        return logprobs_T, torch.where(has_target_T, entropy_T, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_T: Tensor, grad_entropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, targets_T, log_normaliser_T, entropy_T = ctx.saved_tensors
        dtype = log_normaliser_T.dtype
        has_target_T = targets_T >= 0
        grad_logprobs_T = torch.where(has_target_T, grad_logprobs_T, 0)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_TH = torch.empty_like(hidden_TH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if needs_weight else None
        for chunk in _token_chunks(hidden_TH.shape[0], weight_VH.shape[0], dtype):
            logprobs_CV = _tempered_logits(hidden_TH[chunk], weight_VH, ctx.temperature, dtype)
            logprobs_CV -= log_normaliser_T[chunk, None]
            grad_C = grad_logprobs_T[chunk]
            if entropy_T is None:
                grad_logits_CV = logprobs_CV.exp_().mul_(-grad_C[:, None])
            else:
                # d entropy / d logit_j = -p_j (log p_j + entropy)
                grad_entropy_C = torch.where(has_target_T[chunk], grad_entropy_T[chunk], 0)
                probabilities_CV = logprobs_CV.exp()
                grad_logits_CV = logprobs_CV.add_(entropy_T[chunk, None]).mul_(grad_entropy_C[:, None])
                grad_logits_CV.add_(grad_C[:, None]).mul_(probabilities_CV).neg_()
                del probabilities_CV
            grad_logits_CV.scatter_add_(1, targets_T[chunk].clamp(min=0)[:, None], grad_C[:, None])
            grad_logits_CV /= ctx.temperature
            grad_logits_CV = grad_logits_CV.to(hidden_TH.dtype)
            if grad_hidden_TH is not None:
                grad_hidden_TH[chunk] = grad_logits_CV @ weight_VH
            if grad_weight_VH is not None:
                if grad_weight_VH.dtype == hidden_TH.dtype:
                    grad_weight_VH.addmm_(grad_logits_CV.T, hidden_TH[chunk])
                else:
                    grad_weight_VH += grad_logits_CV.T @ hidden_TH[chunk]
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None


def _tempered_logits(hidden_CH: Tensor, weight_VH: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    logits_CV = (hidden_CH @ weight_VH.T).to(dtype)
    return logits_CV if temperature == 1.0 else logits_CV.div_(temperature)


class LanguageModelHead(nn.Module):
    """Output projection with the per-token outputs that trainers ask for.

    Attributes:
        weight: [V, H]; the embedding's own parameter when the model ties them.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))

    def forward(self, hidden: Tensor, inputs: HeadInputs) -> dict[OutputName, Tensor]:
        """Outputs for ``hidden`` [T, H]: ``logprobs`` and ``entropy`` [P], ``logits`` [P, V].

        Raises:
            ValueError: ``values`` was asked for, or ``logprobs`` or ``entropy`` without targets.
        """
        _check_outputs(inputs, allowed=("logprobs", "entropy", "logits"), head="a language-model head")
        targets = inputs.targets
        if inputs.positions is not None:
            hidden = hidden[inputs.positions]
            targets = targets[inputs.positions] if targets is not None else None
        outputs: dict[OutputName, Tensor] = {}
        if "logits" in inputs.outputs:
            dtype = _accumulation_dtype(hidden.dtype)
            outputs["logits"] = (hidden @ self.weight.T).to(dtype) / inputs.temperature
        if "entropy" in inputs.outputs:
            logprobs, entropy = linear_logprobs_and_entropy(hidden, self.weight, targets, inputs.temperature)
            outputs["entropy"] = entropy
            if "logprobs" in inputs.outputs:
                outputs["logprobs"] = logprobs
        elif "logprobs" in inputs.outputs:
            outputs["logprobs"] = linear_logprobs(hidden, self.weight, targets, inputs.temperature)
        return outputs


class ValueHead(nn.Module):
    """A critic's head: one value per position, of the state after that position's token.

    Attributes:
        weight: [1, H].
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))

    def forward(self, hidden: Tensor, inputs: HeadInputs) -> dict[OutputName, Tensor]:
        """``values`` [P] for ``hidden`` [T, H], at least fp32. Raises ValueError for any other output."""
        _check_outputs(inputs, allowed=("values",), head="a critic's value head")
        if inputs.positions is not None:
            hidden = hidden[inputs.positions]
        return {"values": (hidden @ self.weight.T)[:, 0].to(_accumulation_dtype(hidden.dtype))}


def _check_outputs(inputs: HeadInputs, *, allowed: tuple[OutputName, ...], head: str) -> None:
    wrong = [name for name in inputs.outputs if name not in allowed]
    if wrong or not inputs.outputs:
        raise ValueError(
            f"{head} was asked for {wrong or 'nothing'}; it gives {', '.join(allowed)}; ask for one of them"
        )
    if inputs.targets is None and {"logprobs", "entropy"} & set(inputs.outputs):
        raise ValueError(f"{head} was asked for {inputs.outputs} without targets; set HeadInputs.targets")
