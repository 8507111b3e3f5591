"""A rollout client that answers from a script, and the parts of sessions for it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from chat_tokenizers import CHATML, chat_tokenizer

from archon_core.contracts.rollout import Completion, GenerationConfig
from archon_core.contracts.workflows import WorkflowParts
from archon_core.models.end_tokens import ModelEnds, end_tokens
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.session import Session
from archon_rl.agents.session_parts import session_parts
from archon_rl.text_encoding import TextEncoder


@dataclass
class ChatClient:
    """Answers with the texts of a script, in turn, or with what ``answer`` makes of a request's prompt text.

    Attributes:
        tokenizer: encodes the texts.
        script: texts; ``None`` for random tokens.
        answer: prompt text -> text, instead of a script.
        error: raised instead of an answer.
        n_errors: number of requests that raise it; the first ones.
        seconds: duration of an answer.
        version: of the weights; every answer has the next one.
    """

    tokenizer: object
    script: list[str] | None = None
    answer: object = None
    error: Exception | None = None
    n_errors: int = 1000
    seconds: float = 0.0
    version: int = 0
    requests: list = field(default_factory=list)
    completions: list = field(default_factory=list)
    n_cancelled: int = 0

    async def generate(self, request, *, group=""):
        self.requests.append(request)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        if self.error is not None and len(self.requests) <= self.n_errors:
            raise self.error
        draw = random.Random(request.seeds[0])
        ids, reason = self._random(request, draw)
        if self.answer is not None or self.script:
            text = self.answer(request.decode(request.prompt_ids)) if self.answer else self.script.pop(0)
            ids = (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)
            reason = "stop"
        self.version += 1
        completion = Completion(ids, tuple(-draw.random() for _ in ids), (self.version,) * len(ids), reason)
        self.completions.append(completion)
        return [completion]

    def _random(self, request, draw):
        """Tokens that no tokenizer would choose for their text, with or without an end."""
        end = self.tokenizer.eos_token_id
        limit = min(request.config.max_new_tokens, 6)
        ids = tuple(draw.randrange(3, 100) for _ in range(draw.randrange(1, limit + 1)))
        return ((*ids[:-1], end), "stop") if draw.random() < 0.7 else (ids, "length")


def parts_of(tokenizer, **options) -> WorkflowParts:
    encoder = TextEncoder(tokenizer, "question", "answer")
    ends = end_tokens(tokenizer.eos_token_id, ModelEnds("none"))
    sampling = GenerationConfig(**{"max_new_tokens": 32, "stop_token_ids": list(ends.ids), **options})
    return WorkflowParts(tokenizer, encoder.encode_prompt, lambda messages, tools: (), sampling)


def sessions(template=CHATML, *, client=None, sampling=(), tokenizer=None, **options):
    """A function that starts sessions, and their client."""
    tokenizer = tokenizer or chat_tokenizer(template)
    client = client or ChatClient(tokenizer)
    parts = session_parts(AgentOptions(**options), parts_of(tokenizer, **dict(sampling)))
    return lambda seed=1: Session(parts, client, seed), client
