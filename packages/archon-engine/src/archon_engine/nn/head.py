"""Heads: per-token log-probabilities and entropy without the [T, V] logits, and the critic's values.

``linear_logprobs`` fuses the output projection with log-softmax. It loops over chunks of tokens, keeps two numbers per
token and recomputes a chunk's logits in backward, so that peak memory holds a few chunks instead of several [T, V]
matrices. Under tensor parallelism each rank does so for its rows of the vocabulary; after the loop the ranks exchange
two or three numbers per token, once. On a CPU, a single chunk is kept instead of being computed again.

Some models scale logits or cap them before the softmax. ``LogitForm`` describes this, and the fused function does it.

Legend: T tokens, H hidden size, V vocabulary (this rank's part of it), C tokens in a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from archon_core.contracts.packed import HeadInputs, OutputName
from archon_core.models.box import chunk_of
from archon_engine import compat
from archon_engine.nn.embedding import own_rows
from archon_engine.nn.tensor_parallel import TensorParallel, local_weight

CHUNK_BYTES = 64 * 2**20
"""Size of one [C, V] buffer on a CPU. Backward holds two; larger chunks are not measurably faster."""

GPU_CHUNK_BYTES = 2**30
"""The same on other devices. Every chunk reads the whole weight three times and updates its whole fp32 gradient. With
110 tokens, the CPU's chunk for a vocabulary of 152 thousand, this traffic would take several times as long as the
matrix products."""


@dataclass(frozen=True)
class LogitForm:
    """The function from x = ``hidden @ weight.T`` to a model's logits.

    Attributes:
        scale: x is multiplied by it first.
        softcap: x then becomes ``softcap * tanh(x / softcap)``, as in Gemma 2 (arXiv:2408.00118, section 2); ``None``
            for no cap.
    """

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Compute the model's logits from the outputs of its projection."""
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


PLAIN = LogitForm()


def linear_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    temperature: float,
    parallel: TensorParallel | None = None,
    form: LogitForm = PLAIN,
    first_row: int = 0,
) -> Tensor:
    """``log_softmax(hidden @ weight.T / temperature)`` at the targets: [T], at least fp32, 0 where the target is -1.

    Args:
        hidden_TH: of all tokens, on every tensor rank. Its gradient is this rank's part of a sum over them.
        weight_VH: this rank's rows.
        targets_T: int64, rows of the whole vocabulary.
        temperature: logits are divided by it.
        parallel: the tensor ranks that hold the other rows.
        form: applied before the division by the temperature.
        first_row: the first of this rank's rows in the whole vocabulary.
    """
    keeps = _keeps_chunk(hidden_TH, weight_VH, parallel, form)
    return _LinearLogSoftmax.apply(
        hidden_TH, weight_VH, targets_T, temperature, False, parallel, form, first_row, keeps
    )[0]


def linear_logprobs_and_entropy(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    temperature: float,
    parallel: TensorParallel | None = None,
    form: LogitForm = PLAIN,
    first_row: int = 0,
) -> tuple[Tensor, Tensor]:
    """As ``linear_logprobs``, with the entropy of each position's distribution in nats: two [T] tensors."""
    keeps = _keeps_chunk(hidden_TH, weight_VH, parallel, form)
    return _LinearLogSoftmax.apply(hidden_TH, weight_VH, targets_T, temperature, True, parallel, form, first_row, keeps)


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _token_chunks(tokens: int, vocabulary: int, dtype: torch.dtype, device_type: str) -> list[slice]:
    chunk_bytes = CHUNK_BYTES if device_type == "cpu" else GPU_CHUNK_BYTES
    rows = max(1, chunk_bytes // (vocabulary * dtype.itemsize))
    # Even chunks: 4,096 tokens in chunks of 110 would leave a last one of 26.
    n_chunks = max(1, math.ceil(tokens / rows))
    size = math.ceil(tokens / n_chunks)
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, max(size, 1))]


def _keeps_chunk(hidden_TH: Tensor, weight_VH: Tensor, parallel: TensorParallel | None, form: LogitForm) -> bool:
    """Whether backward gets the log-probabilities of all tokens and words instead of computing them again.

    A fourth matrix product is worth its time where it saves memory. On a CPU, with all tokens in one chunk, it saves a
    buffer of ``CHUNK_BYTES`` at most, and a vocabulary that small goes with a small model, where the head's products
    are a large part of the step.
    """
    wants_gradients = torch.is_grad_enabled() and (hidden_TH.requires_grad or weight_VH.requires_grad)
    if not wants_gradients or hidden_TH.device.type != "cpu" or parallel is not None or form.softcap is not None:
        return False
    dtype = _accumulation_dtype(hidden_TH.dtype)
    return len(_token_chunks(hidden_TH.shape[0], weight_VH.shape[0], dtype, "cpu")) == 1


def _combine(
    log_normaliser_T: Tensor, target_logits_T: Tensor, entropy_T: Tensor | None, parallel: TensorParallel
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Combine the three values of each rank's rows into those of the whole vocabulary.

    With w the share of a rank's rows in the whole distribution, its entropy is the sum of w (own entropy - log w).
    """
    own = [log_normaliser_T, target_logits_T, *([] if entropy_T is None else [entropy_T])]
    statistics = compat.all_gather(torch.stack(own)[None], 0, parallel.group)
    log_normalisers_RT, target_logits_RT = statistics[:, 0], statistics[:, 1]
    log_normaliser_T = torch.logsumexp(log_normalisers_RT, 0)
    if entropy_T is not None:
        log_shares_RT = log_normalisers_RT - log_normaliser_T
        entropy_T = (log_shares_RT.exp() * (statistics[:, 2] - log_shares_RT)).sum(0)
    return log_normaliser_T, target_logits_RT.sum(0), entropy_T


class _LinearLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        temperature: float,
        with_entropy: bool,
        parallel: TensorParallel | None,
        form: LogitForm,
        first_row: int,
        keeps_chunk: bool,
    ) -> tuple[Tensor, Tensor | None]:
        dtype = _accumulation_dtype(hidden_TH.dtype)
        tokens, vocabulary = hidden_TH.shape[0], weight_VH.shape[0]
        has_target_T = targets_T >= 0
        own = range(first_row, first_row + vocabulary)
        rows_T, is_elsewhere_T = own_rows(targets_T, own)
        log_normaliser_T = hidden_TH.new_empty(tokens, dtype=dtype)
        target_logits_T = hidden_TH.new_empty(tokens, dtype=dtype)
        entropy_T = hidden_TH.new_empty(tokens, dtype=dtype) if with_entropy else None
        kept_TV: Tensor | None = None
        for chunk in _token_chunks(tokens, vocabulary, dtype, hidden_TH.device.type):
            logits_CV = _tempered_logits(hidden_TH[chunk], weight_VH, temperature, form, dtype)[0]
            log_normaliser_C = torch.logsumexp(logits_CV, dim=-1)
            log_normaliser_T[chunk] = log_normaliser_C
            # Row 0 stands in for targets that are -1 or lie on another rank; both are masked after the loop.
            target_logits_T[chunk] = logits_CV.gather(1, rows_T[chunk, None])[:, 0]
            if entropy_T is not None or keeps_chunk:
                logprobs_CV = logits_CV.sub_(log_normaliser_C[:, None])
                if entropy_T is not None:
                    # Not log Z - sum p logit: there a rounding of the sum of p counts as often as logits are large.
                    entropy_T[chunk] = -logprobs_CV.exp().mul_(logprobs_CV).sum(-1)
                kept_TV = logprobs_CV if keeps_chunk else None
                del logprobs_CV
            # Names outlive a round of the loop, and would keep this chunk while the next one is computed.
            del logits_CV
        if parallel is not None:
            # Zero where another rank has the target: the sum over ranks is then its logit.
            log_normaliser_T, target_logits_T, entropy_T = _combine(
                log_normaliser_T, target_logits_T.masked_fill_(is_elsewhere_T, 0), entropy_T, parallel
            )
        logprobs_T = torch.where(has_target_T, target_logits_T - log_normaliser_T, 0)
        ctx.temperature, ctx.form, ctx.own = temperature, form, own
        # No logits, unless they are one chunk. The normaliser and the entropy are those of the whole vocabulary, so
        # backward needs no exchange: a rank's gradient of hidden is its summand, which the gradient of gather_tokens
        # sums.
        ctx.save_for_backward(hidden_TH, weight_VH, targets_T, log_normaliser_T, entropy_T, kept_TV)
        if entropy_T is None:
            return logprobs_T, None
        return logprobs_T, torch.where(has_target_T, entropy_T, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_T: Tensor, grad_entropy_T: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_VH, targets_T, log_normaliser_T, entropy_T, kept_TV = ctx.saved_tensors
        dtype = log_normaliser_T.dtype
        has_target_T = targets_T >= 0
        rows_T, is_elsewhere_T = own_rows(targets_T, ctx.own)
        grad_logprobs_T = torch.where(has_target_T, grad_logprobs_T, 0)
        grad_at_target_T = grad_logprobs_T.masked_fill(is_elsewhere_T, 0)
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_TH = torch.empty_like(hidden_TH) if needs_hidden else None
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=dtype) if needs_weight else None
        for chunk in _token_chunks(hidden_TH.shape[0], weight_VH.shape[0], dtype, hidden_TH.device.type):
            if kept_TV is None:
                logprobs_CV, capped_CV = _tempered_logits(hidden_TH[chunk], weight_VH, ctx.temperature, ctx.form, dtype)
                logprobs_CV -= log_normaliser_T[chunk, None]
            else:
                logprobs_CV, capped_CV = kept_TV, None
            grad_C = grad_logprobs_T[chunk]
            # d logprob(target) / d logit_j = [j is the target] - p_j. The first term is scattered in below.
            if entropy_T is None:
                # A split backward pass reads the kept values twice; others are overwritten.
                probabilities_CV = logprobs_CV.exp_() if kept_TV is None else logprobs_CV.exp()
                grad_logits_CV = probabilities_CV.mul_(-grad_C[:, None])
            else:
                # d entropy / d logit_j = -p_j (log p_j + entropy)
                grad_entropy_C = torch.where(has_target_T[chunk], grad_entropy_T[chunk], 0)
                probabilities_CV = logprobs_CV.exp()
                shifts_C1 = entropy_T[chunk, None]
                shifted_CV = logprobs_CV.add_(shifts_C1) if kept_TV is None else logprobs_CV + shifts_C1
                grad_logits_CV = shifted_CV.mul_(grad_entropy_C[:, None])
                grad_logits_CV.add_(grad_C[:, None]).mul_(probabilities_CV).neg_()
                del shifted_CV
            del probabilities_CV  # with entropy, a [C, V] buffer less while the products below run
            grad_logits_CV.scatter_add_(1, rows_T[chunk, None], grad_at_target_T[chunk, None])
            grad_logits_CV /= ctx.temperature / ctx.form.scale
            if capped_CV is not None:
                # tanh' = 1 - tanh^2
                grad_logits_CV.mul_(capped_CV.square_().neg_().add_(1))
            del logprobs_CV, capped_CV  # the first is another name of the gradients, which the cast can free then
            grad_logits_CV = grad_logits_CV.to(hidden_TH.dtype)
            if grad_hidden_TH is not None:
                grad_hidden_TH[chunk] = grad_logits_CV @ weight_VH
            if grad_weight_VH is not None:
                # Accumulated in at least fp32: in bf16 the summands of late chunks would be rounded away. addmm_ needs
                # one type, so 16-bit products are made first.
                if grad_weight_VH.dtype == hidden_TH.dtype:
                    grad_weight_VH.addmm_(grad_logits_CV.T, hidden_TH[chunk])
                else:
                    grad_weight_VH += grad_logits_CV.T @ hidden_TH[chunk]
            del grad_logits_CV  # as in forward
        if grad_weight_VH is not None:
            grad_weight_VH = grad_weight_VH.to(weight_VH.dtype)
        return grad_hidden_TH, grad_weight_VH, None, None, None, None, None, None, None


def _tempered_logits(
    hidden_CH: Tensor, weight_VH: Tensor, temperature: float, form: LogitForm, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Logits over the temperature, and with a softcap their hyperbolic tangents, which backward needs.

    The product is rounded to the type of the weights before it is widened, as in transformers. Everything after it is
    in place: the product is a new tensor, also where ``.to`` returns it unchanged.
    """
    logits_CV = (hidden_CH @ weight_VH.T).to(dtype)
    if form.softcap is None:
        divisor = temperature / form.scale
        return logits_CV if divisor == 1.0 else logits_CV.div_(divisor), None
    capped_CV = logits_CV.mul_(form.scale / form.softcap).tanh_()
    return capped_CV * (form.softcap / temperature), capped_CV


class LanguageModelHead(nn.Module):
    """Output projection that computes the per-token outputs that trainers request.

    Attributes:
        weight: [V, H]; the embedding's own parameter when the model ties them.
        vocab_size: rows on all tensor ranks together.
        form: how logits are made from the projection's outputs.
        parallel: the tensor ranks over which rows are sharded; ``None`` without tensor parallelism.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, scale: float = 1.0, softcap: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.vocab_size = vocab_size
        self.form = LogitForm(scale, softcap)
        self.parallel: TensorParallel | None = None

    def forward(self, hidden: Tensor, inputs: HeadInputs) -> dict[OutputName, Tensor]:
        """Outputs for ``hidden``, [T, H] or this rank's tokens of it: ``logprobs`` and ``entropy`` [P], ``logits``
        [P, vocabulary], each whole on every rank. P is T without ``inputs.positions``; ``inputs.places`` changes
        log-probabilities and entropies only.

        Raises:
            ValueError: the request contains ``values``, or ``logprobs`` or ``entropy`` without targets.
        """
        _check_outputs(inputs, allowed=("logprobs", "entropy", "logits"), head="a language-model head")
        targets, weight, temperature = inputs.targets, local_weight(self.weight), inputs.temperature
        if self.parallel is not None:
            hidden = self.parallel.gather_tokens(hidden)
        n_tokens, places = hidden.shape[0], inputs.positions
        if places is None and inputs.scored is not None and "logits" not in inputs.outputs:
            places = inputs.scored
        if places is not None:
            # Not hidden[places]: on a CPU, the backward pass of index_select is many times faster.
            hidden = hidden.index_select(0, places)
            targets = targets[places] if targets is not None else None
        outputs: dict[OutputName, Tensor] = {}
        first_row = 0 if self.parallel is None else self.parallel.own_part(self.vocab_size).start
        if "logits" in inputs.outputs:
            logits = self.form.apply((hidden @ weight.T).to(_accumulation_dtype(hidden.dtype))) / temperature
            outputs["logits"] = logits if self.parallel is None else self._gather_vocabulary(logits, self.parallel)
        if inputs.places is not None:
            hidden = hidden.index_select(0, inputs.places)
        if "entropy" in inputs.outputs:
            logprobs, entropy = linear_logprobs_and_entropy(
                hidden, weight, targets, temperature, self.parallel, self.form, first_row
            )
            outputs["entropy"] = entropy
            if "logprobs" in inputs.outputs:
                outputs["logprobs"] = logprobs
        elif "logprobs" in inputs.outputs:
            outputs["logprobs"] = linear_logprobs(
                hidden, weight, targets, temperature, self.parallel, self.form, first_row
            )
        if places is inputs.positions:
            return outputs
        return {name: x.new_zeros(n_tokens).index_copy(0, inputs.scored, x) for name, x in outputs.items()}

    def _gather_vocabulary(self, logits: Tensor, parallel: TensorParallel) -> Tensor:
        """Gather [P, vocabulary] from each rank's [P, own rows]; the last ranks may have fewer rows."""
        most = len(chunk_of(self.vocab_size, parallel.size, 0))
        padded = functional.pad(logits, (0, most - logits.shape[1]))
        # Parts are full up to the one that the vocabulary ends in, so padding follows all of it.
        return parallel.gather_results(padded, 1)[:, : self.vocab_size]


class ValueHead(nn.Module):
    """A critic's head: one value per position, of the state after that position's token.

    Attributes:
        weight: [1, H].
        parallel: the tensor ranks, each with a part of the tokens; ``None`` without tensor parallelism.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, hidden_size))
        self.parallel: TensorParallel | None = None

    def forward(self, hidden: Tensor, inputs: HeadInputs) -> dict[OutputName, Tensor]:
        """``values`` [P], at least fp32 and whole on every rank, for ``hidden``, [T, H] or this rank's tokens of it.

        Raises:
            ValueError: the request contains another output.
        """
        _check_outputs(inputs, allowed=("values",), head="a critic's value head")
        # A product with a vector, not a column of a matrix product: FSDP2 hooks outputs, and warns about views.
        values = (hidden @ local_weight(self.weight)[0]).to(_accumulation_dtype(hidden.dtype))
        if self.parallel is not None and self.parallel.sequence_sharded:
            values = self.parallel.gather_results(values, 0)
        return {"values": values if inputs.positions is None else values[inputs.positions]}


def _check_outputs(inputs: HeadInputs, *, allowed: tuple[OutputName, ...], head: str) -> None:
    wrong = [name for name in inputs.outputs if name not in allowed]
    if wrong or not inputs.outputs:
        raise ValueError(
            f"{head}: found a request for {wrong or 'no output'}; allowed are {', '.join(allowed)}; correct the request"
        )
    if inputs.targets is None and {"logprobs", "entropy"} & set(inputs.outputs):
        raise ValueError(f"{head}: found a request for {inputs.outputs} without targets; set HeadInputs.targets")
