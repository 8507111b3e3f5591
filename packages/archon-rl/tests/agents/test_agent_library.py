"""A published library of agents, which knows only an OpenAI client: smolagents, with a tool and several steps."""

import asyncio
import json

import pytest
from agent_workflows import workflow_of

smolagents = pytest.importorskip("smolagents", reason="the optional dependency smolagents is not installed")


@smolagents.tool
def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return a + b


def call_of(name, **arguments):
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def agent(data, base_url, api_key):
    # The library's default, "required", cannot be promised by a model that samples freely.
    model = smolagents.OpenAIModel("default", api_base=base_url, api_key=api_key, tool_choice="auto")
    solver = smolagents.ToolCallingAgent([add], model, max_steps=3, verbosity_level=0)
    answer = await asyncio.to_thread(solver.run, data["question"])  # it blocks
    return float(str(answer) == data["answer"])


def test_an_agent_of_smolagents_uses_its_tool_and_is_trained_on():
    script = [call_of("add", a=20, b=22), call_of("final_answer", answer="42")]

    async def run():
        async with workflow_of(agent, script=list(script)) as (workflow, client):
            record = {"question": "What is 20 + 22?", "answer": "42"}
            return await workflow.run(client, record, (1,)), client

    trajectories, client = asyncio.run(run())
    assert [one.reward for one in trajectories] == [1.0, 1.0]
    for one, request, completion in zip(trajectories, client.requests, client.completions, strict=True):
        assert one.token_ids == request.prompt_ids + completion.token_ids
        assert one.n_sampled == len(completion.token_ids)
    second = client.tokenizer.decode(client.requests[1].prompt_ids)
    assert "tools\nadd final_answer<|im_end|>" in second
    assert "Observation:\n42" in second
