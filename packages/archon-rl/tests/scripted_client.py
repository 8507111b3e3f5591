"""``ScriptedClient``: a rollout client whose completions are given, and the parts of a workflow over it."""

from __future__ import annotations

from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_rl.rewards.calls import Outcome
from archon_rl.text_encoding import TextEncoder
from archon_rl.tokenization import characters_tokenizer
from archon_rl.workflows.parts import workflow_parts

ALPHABET = "0123456789+=- .abcdefghijklmnopqrstuvwxyz?!\n"


class ScriptedClient:
    """Answers each request with the texts that ``answer(prompt text, seed)`` gives, and keeps the requests."""

    version = 3

    def __init__(self, tokenizer, answer):
        self.tokenizer, self.answer = tokenizer, answer
        self.requests, self.groups = [], []

    async def generate(self, request, *, group=""):
        self.requests.append(request)
        self.groups.append(group)
        prompt = self.tokenizer.decode(request.prompt_ids, skip_special_tokens=True)
        return [self.completion(self.answer(prompt, seed), seed) for seed in request.seeds]

    def completion(self, text, seed):
        """``text`` with the end-of-text token, unless it ends in ``...`` for a completion at the length limit."""
        cut = text.endswith("...")
        ids = self.tokenizer.encode(text.removesuffix("..."), add_special_tokens=False)
        ids += [] if cut else [self.tokenizer.eos_token_id]
        logprobs = tuple(-0.01 * (seed + 1) - 0.001 * place for place in range(len(ids)))
        return Completion(tuple(ids), logprobs, (self.version,) * len(ids), "length" if cut else "stop")


class FunctionScorer:
    """Calls ``function(prompt, completion, record)``; keeps the calls. An ``Outcome`` is passed on."""

    def __init__(self, function):
        self.function, self.calls = function, []

    async def score(self, calls):
        self.calls += calls
        values = [self.function(call.prompt, call.completion, call.record) for call in calls]
        return [value if isinstance(value, Outcome) else Outcome(float(value)) for value in values]


def build_encoder(tokenizer=None) -> TextEncoder:
    """Of records with ``question`` and ``answer``."""
    return TextEncoder(tokenizer or characters_tokenizer([ALPHABET]), "question", "answer")


def build_parts(encoder, reward, **options):
    """``WorkflowParts`` with a reward function."""
    end = encoder.tokenizer.eos_token_id
    config = GenerationConfig(**{"n_samples": 2, "max_new_tokens": 8, "stop_token_ids": [end], **options})
    return workflow_parts(encoder, config, None if reward is None else FunctionScorer(reward))
