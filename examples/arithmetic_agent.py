"""An agent that knows only an OpenAI client: it asks for a sum, and asks again if the answer is wrong."""

from openai import AsyncOpenAI


class SecondChance:
    async def run(self, data, **extra_kwargs):
        client = AsyncOpenAI(**extra_kwargs, max_retries=0)
        messages = [{"role": "user", "content": data["question"]}]
        for reward in (1.0, 0.5):
            completion = await client.chat.completions.create(model="default", messages=messages)
            answer = completion.choices[0].message.content
            if answer.strip() == data["answer"]:
                return reward
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": data["question"]}]
        return 0.0
