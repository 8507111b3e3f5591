"""Plugin registration of tools and of the parsers of their calls. Part of ``plugin``."""

from __future__ import annotations

from collections.abc import Iterable

from archon_core.plugins import ReasoningParserSpec, ToolParserSpec, ToolSpec, hookimpl


@hookimpl
def archon_tools() -> Iterable[ToolSpec]:
    return [
        ToolSpec(
            name="calculator",
            target="archon_rl.tools.calculator:calculator",
            summary="arithmetic with numbers, + - * / // % ** and parentheses",
            place="here",
        ),
        ToolSpec(
            name="python",
            target="archon_rl.tools.python_expression:python",
            summary="the value of a Python expression, in a sandbox process",
            place="sandbox",
        ),
    ]


@hookimpl
def archon_tool_parsers() -> Iterable[ToolParserSpec]:
    return [
        ToolParserSpec(
            name="hermes",
            aliases=("qwen", "qwen25"),
            target="archon_rl.tools.parsing.hermes:PARSER",
            summary='<tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen2.5, Qwen3',
        ),
        ToolParserSpec(
            name="qwen3_coder",
            target="archon_rl.tools.parsing.qwen3_coder:PARSER",
            summary="<tool_call> with <function=...> and <parameter=...>: Qwen3-Coder, Qwen3.5",
        ),
        ToolParserSpec(
            name="llama_json",
            aliases=("llama3", "llama3_json"),
            target="archon_rl.tools.parsing.llama_json:PARSER",
            summary='{"name": ..., "parameters": {...}}: Llama 3.1',
        ),
        ToolParserSpec(
            name="pythonic",
            aliases=("llama4", "llama4_pythonic"),
            target="archon_rl.tools.parsing.pythonic:PARSER",
            summary='[name(argument="value"), ...]: Llama 3.2, Llama 4',
        ),
        ToolParserSpec(
            name="toolformer",
            target="archon_rl.tools.parsing.toolformer:PARSER",
            summary="[name(argument)->result] in plain text (arXiv:2302.04761), for models without a chat template",
        ),
    ]


@hookimpl
def archon_reasoning_parsers() -> Iterable[ReasoningParserSpec]:
    return [
        ReasoningParserSpec(
            name="qwen3",
            target="archon_rl.tools.parsing.reasoning:qwen3",
            summary="<think>...</think> before the answer, or no reasoning: Qwen3",
        ),
        ReasoningParserSpec(
            name="deepseek-r1",
            aliases=("deepseek_r1",),
            target="archon_rl.tools.parsing.reasoning:deepseek_r1",
            summary="as qwen3, for prompts that already open the reasoning: DeepSeek-R1",
        ),
    ]
