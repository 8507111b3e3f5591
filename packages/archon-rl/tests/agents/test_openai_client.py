"""The OpenAI library against a session: chats, events, tools, parallel calls, errors and interruptions."""

import asyncio
import json

import pytest
from agent_workflows import workflow_of

from archon_core.contracts.workflows import NO_VERSION
from archon_core.errors import ServerError, TooLongRequestError
from archon_rl.agents.errors import SessionError

openai = pytest.importorskip("openai", reason="the optional dependency openai is not installed")

RECORD = {"question": "2+2="}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def client_of(base_url, api_key, http_client=None):
    return openai.AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client, max_retries=0)


def user(text):
    return {"role": "user", "content": text}


def run_agent(agent, seeds=(1,), **given):
    """The trajectories of one record, and the client."""

    async def run():
        async with workflow_of(agent, **given) as (workflow, client):
            return await workflow.run(client, RECORD, seeds), client

    return asyncio.run(run())


def test_a_chat_is_answered_and_recorded():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        answer = await chat.create(model="any", messages=[user(data["question"])], logprobs=True)
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason, answer.model) == ("4", "stop", "any")
        assert answer.usage.completion_tokens == len(choice.logprobs.content) == 2
        return 1.0

    [one], client = run_agent(agent, script=["4"])
    [request], [completion] = client.requests, client.completions
    n = len(request.prompt_ids)
    assert client.tokenizer.decode(request.prompt_ids) == "<|im_start|>user\n2+2=<|im_end|>\n<|im_start|>assistant\n"
    assert one.token_ids == request.prompt_ids + completion.token_ids
    assert one.loss_mask == (False,) * n + (True,) * 2
    assert one.logprobs == (0.0,) * n + completion.logprobs
    assert one.versions == (NO_VERSION,) * n + (1, 1)
    assert (one.reward, one.truncated) == (1.0, False)


def test_a_streamed_answer_is_the_whole_answer_in_events():
    used = []

    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        text, calls, usage, end = "", [], None, None
        stream = await chat.create(
            model="any", messages=[user("a")], tools=[TOOL], stream=True, stream_options={"include_usage": True}
        )
        async for event in stream:
            usage = event.usage or usage
            for choice in event.choices:
                text += choice.delta.content or ""
                calls += choice.delta.tool_calls or []
                end = choice.finish_reason or end
        assert (text.strip(), end) == ("so", "tool_calls")
        used.append(usage.completion_tokens)
        assert [(call.index, call.function.name, call.function.arguments) for call in calls] == [
            (0, "add", '{"a": 1}'),
            (1, "add", "{}"),
        ]
        return 2.0

    text = 'so<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "add"}</tool_call>'
    [one], client = run_agent(agent, script=[text])
    assert one.reward == 2.0
    sampled = client.completions[0].token_ids
    assert one.token_ids[-len(sampled) :] == sampled
    assert used == [len(sampled)]


def test_results_of_tools_continue_the_sampled_tokens():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        messages = [user("2+2=")]
        answer = await chat.create(model="any", messages=messages, tools=[TOOL])
        message = answer.choices[0].message
        [call] = message.tool_calls
        assert json.loads(call.function.arguments) == {"a": 2}
        messages += [message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "4"}]
        final = await chat.create(model="any", messages=messages, tools=[TOOL])
        return 1.0 if final.choices[0].message.content == "4!" else 0.0

    script = ['<tool_call>{"name":"add",  "arguments":{"a":2}}</tool_call>', "4!"]
    [one], client = run_agent(agent, script=list(script), export_style="concat")
    text = client.tokenizer.decode(one.token_ids)
    turns = ["tools\nadd", "user\n2+2=", f"assistant\n{script[0]}", "tool\n4", "assistant\n4!"]
    assert text == "\n".join(f"<|im_start|>{turn}<|im_end|>" for turn in turns)
    sampled = [token for token, mask in zip(one.token_ids, one.loss_mask, strict=True) if mask]
    assert sampled == [token for completion in client.completions for token in completion.token_ids]
    assert one.reward == 1.0


def test_parallel_calls_of_parallel_samples_are_kept_apart():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        answers = await asyncio.gather(*(chat.create(model="m", messages=[user(f"{n}?")]) for n in range(5)))
        assert [answer.choices[0].message.content for answer in answers] == [f"{n}!" for n in range(5)]
        return {answer.id: float(n) for n, answer in enumerate(answers)}

    trajectories, client = run_agent(
        agent, seeds=(1, 2, 3), answer=lambda prompt: f"{prompt.partition('?')[0][-1]}!", seconds=0.01, turn_discount=0
    )
    assert sorted(one.reward for one in trajectories) == sorted([0.0, 1.0, 2.0, 3.0, 4.0] * 3)
    for one in trajectories:
        text = client.tokenizer.decode(one.token_ids)
        assert text.endswith(f"{one.reward:.0f}?<|im_end|>\n<|im_start|>assistant\n{one.reward:.0f}!<|im_end|>")


def test_rewards_go_back_along_the_calls():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        for text in "abc":
            await chat.create(model="m", messages=[user(text)])
        return 4.0

    trajectories, _ = run_agent(agent, turn_discount=0.5)
    assert [one.reward for one in trajectories] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": 0.2}, "temperature: found 0.2; this run samples with gconfig.temperature=1"),
        ({"n": 2}, "n: found 2; allowed is 1"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice: found 'required'"),
        ({"response_format": {"type": "json_object"}}, "response_format: found"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "found the role 'critic'"),
        ({"max_tokens": 0}, "max_tokens: found 0"),
        ({"top_logprobs": 3, "logprobs": True}, "top_logprobs: found 3"),
    ],
)
def test_requests_for_something_else_are_refused_by_name(fields, message):
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        with pytest.raises(openai.BadRequestError, match=message.replace("(", r"\(")):
            await chat.create(**{"model": "m", "messages": [user("a")], **fields})
        await chat.create(model="m", messages=[user("a")], temperature=1.0, max_tokens=3, stop=["x"])
        return 0.0

    [_], client = run_agent(agent)
    [request] = client.requests
    assert (request.config.max_new_tokens, request.config.stop) == (3, ["x"])


def test_a_conversation_that_is_too_long_has_openais_code():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        with pytest.raises(openai.BadRequestError, match="shorten the conversation") as error:
            await chat.create(model="m", messages=[user("far too long" * 9)])
        assert error.value.code == "context_length_exceeded"
        await chat.create(model="m", messages=[user("a")])
        return 0.0

    [_], client = run_agent(agent, engine_max_tokens=40)
    [request] = client.requests
    assert len(request.prompt_ids) + request.config.max_new_tokens == 40


def test_a_prompt_beyond_the_limit_of_training_or_servers_has_openais_code():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        with pytest.raises(openai.BadRequestError, match="found 9 tokens; allowed are 8") as error:
            await chat.create(model="m", messages=[user("a")])
        assert error.value.code == "context_length_exceeded"
        await chat.create(model="m", messages=[user("a")])
        return 0.5

    [one], _ = run_agent(agent, error=TooLongRequestError("prompt: found 9 tokens; allowed are 8"), n_errors=1)
    assert one.reward == 0.5


def test_another_key_and_an_ended_session_are_refused():
    kept = {}

    async def agent(data, base_url, api_key, http_client):
        kept.update(base_url=base_url, api_key=api_key)
        stranger = client_of(base_url, "another", http_client)
        with pytest.raises(openai.AuthenticationError, match="no running session with this API key"):
            await stranger.chat.completions.create(model="m", messages=[user("a")])
        by_key_alone = client_of(base_url.partition("/sessions")[0] + "/v1", api_key, http_client)
        await by_key_alone.chat.completions.create(model="m", messages=[user("a")])
        assert [model.id async for model in by_key_alone.models.list()] == ["default"]
        with pytest.raises(openai.NotFoundError, match="the collector has /v1/chat/completions"):
            await by_key_alone.responses.create(model="m", input="a")
        return 1.0

    async def run():
        async with workflow_of(agent) as (workflow, client):
            await workflow.run(client, RECORD, (1,))
            late = client_of(**kept)
            with pytest.raises(openai.AuthenticationError, match="no running session"):
                await late.chat.completions.create(model="m", messages=[user("a")])

    asyncio.run(run())


def test_a_client_that_disconnects_aborts_its_call():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).with_options(timeout=0.2).chat.completions
        with pytest.raises(openai.APITimeoutError):
            await chat.create(model="m", messages=[user("slow")])
        return 1.0

    async def run():
        async with workflow_of(agent, seconds=60.0) as (workflow, client):
            with pytest.raises(SessionError, match="session without such a call"):
                await workflow.run(client, RECORD, (1,))
            for _ in range(100):
                if client.n_cancelled:
                    break
                await asyncio.sleep(0.02)
            assert client.n_cancelled == 1

    asyncio.run(run())


def test_a_repeated_call_is_left_out_on_request():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        for _ in range(2):
            await chat.create(model="m", messages=[user("a")])
        return 1.0

    assert len(run_agent(agent)[0]) == 2
    [kept], _ = run_agent(agent, drop_retry_orphans=True)
    assert kept.versions[-1] == 2


def test_an_error_of_the_servers_before_an_answer_is_not_why_an_agent_fails():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        with pytest.raises(openai.InternalServerError, match="all servers are gone"):
            await chat.create(model="m", messages=[user("a")])
        await chat.create(model="m", messages=[user("a")])
        raise LookupError("nothing there")

    with pytest.raises(SessionError, match="the agent raised LookupError: nothing there"):
        run_agent(agent, error=ServerError("all servers are gone"), n_errors=1)


def test_an_error_of_the_servers_ends_the_run_and_not_the_group():
    async def agent(data, base_url, api_key, http_client):
        chat = client_of(base_url, api_key, http_client).chat.completions
        await chat.create(model="m", messages=[user("a")])

    with pytest.raises(ServerError, match="all servers are gone"):
        run_agent(agent, error=ServerError("all servers are gone"))
