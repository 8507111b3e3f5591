"""What trainers and inference engines exchange: sampling options, requests and completions. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class GenerationConfig:
    """Sampling options (``gconfig`` in a configuration).

    Attributes:
        n_samples: completions per prompt; they share the prompt's prefill.
        max_new_tokens: upper limit of generated tokens per completion, the stop token included.
        min_new_tokens: stop tokens cannot be drawn before this many tokens.
        max_tokens: upper limit of prompt plus completion; null for none.
        temperature: logits are divided by it. Log-probabilities are those of the tempered distribution.
        top_p: keep the smallest set of most probable tokens whose probability reaches this; 1.0 keeps all.
        top_k: keep the k most probable tokens; 0 keeps all.
        greedy: take the most probable token. Log-probabilities are then those at temperature 1.
        stop_token_ids: token ids that end a completion, beside the tokenizer's end of text and the model's own list.
    """

    n_samples: int = 1
    max_new_tokens: int = 512
    min_new_tokens: int = 0
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    stop_token_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to complete ``config.n_samples`` times.

    Attributes:
        prompt_ids: token ids, at least one.
        seeds: one seed per sample. A completion depends on its prompt, weights, options and seed only,
            never on what else is generated beside it.
    """

    prompt_ids: tuple[int, ...]
    config: GenerationConfig
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Completion:
    """One sampled continuation.

    Attributes:
        token_ids: generated ids, the stop token included when there is one.
        logprobs: log-probability of every generated token under the tempered distribution, before top-p and
            top-k cut it: what a trainer computes for the same tokens at the same temperature.
        versions: the weight version that produced each token.
        stop_reason: ``"stop"`` after a stop token, ``"length"`` at the limit.
        routed_experts: int16 tensor [prompt and generated tokens - 1, layers, k], where every token went, but
            for the last one, which no model was asked about; -1 in layers without experts. Name and shape are those of
            vLLM and SGLang. ``None`` where nobody asked (``rollout.return_routed_experts``).
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    versions: tuple[int, ...]
    stop_reason: Literal["stop", "length"]
    routed_experts: Any = field(default=None, compare=False)
