"""Environments of verifiers for tests: only what its documentation shows."""

from __future__ import annotations

import verifiers as vf
from datasets import Dataset


class Guessing(vf.MultiTurnEnv):
    """Says whether a guess is too large. Rewrites its own messages if ``state["info"]`` says so."""

    async def env_response(self, messages, state, **kwargs):
        guess = messages[-1]["content"]
        if guess == "fail":
            raise LookupError("cannot read the guess")
        if guess == state["answer"]:
            state["final_env_response"] = []
            return []
        if guess == "rewrite":
            messages[0]["content"] = "another question"
        return [{"role": "user", "content": "less" if guess > state["answer"] else "more"}]


async def found_it(completion, answer, state) -> float:
    return 1.0 if completion[-1]["content"] == answer else 0.0


async def compared(completions, states) -> list[float]:
    return [0.0 for _ in completions]


async def double(a: int) -> int:
    """Double a number."""
    return 2 * a


def load_environment(kind: str = "guessing", rows: int = 4, evaluation: int = 2):
    def data(prefix, n):
        prompt = [{"role": "system", "content": "Guess."}, {"role": "user", "content": "Which digit?"}]
        return Dataset.from_list(
            [{"prompt": prompt, "answer": str(5 + i), "info": {"id": f"{prefix}{i}"}} for i in range(n)]
        )

    common = {"dataset": data("t", rows), "eval_dataset": data("e", evaluation) if evaluation else None}
    match kind:
        case "guessing":
            return Guessing(**common, rubric=vf.Rubric(funcs=[found_it]), max_turns=3)
        case "compared":
            return Guessing(**common, rubric=vf.Rubric(funcs=[compared]))
        case "tools":
            return vf.ToolEnv(tools=[double], **common, rubric=vf.Rubric(funcs=[found_it]), max_turns=4)
    raise ValueError(f"no environment {kind}")
