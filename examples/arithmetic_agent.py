"""An agent that knows only an OpenAI client: it asks for a sum, and asks once more if the answer is wrong.

examples/grpo_agent.yaml trains the model behind it.
"""

from typing import Any

from openai import AsyncOpenAI

REWARDS = (1.0, 0.5)
"""Of a right answer in the first and in the second attempt."""


class SecondChance:
    """Each call continues the conversation of the one before."""

    async def run(self, data: dict[str, Any], **extra_kwargs: Any) -> float:
        """The reward of one session.

        Args:
            data: a record of the data set.
            extra_kwargs: ``base_url`` and ``api_key`` of the session, and an ``http_client``.
        """
        client = AsyncOpenAI(**extra_kwargs, max_retries=0)
        messages = [{"role": "user", "content": data["question"]}]
        for reward in REWARDS:
            completion = await client.chat.completions.create(model="default", messages=messages)
            answer = completion.choices[0].message.content or ""
            if answer.strip() == data["answer"]:
                return reward
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": data["question"]}]
        return 0.0
