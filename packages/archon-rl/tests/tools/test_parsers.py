"""Parsers of tool calls: what each format means, and that no text makes one fail."""

from __future__ import annotations

import json
import keyword

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from archon_core.contracts.tool_calls import ParsedAnswer, ToolCall, ToolParser
from archon_core.plugins import ToolParserSpec, registry
from archon_rl.tools.parsing import hermes, llama_json, pythonic, qwen3_coder, reasoning, toolformer

PARSERS = {
    "hermes": hermes.PARSER,
    "qwen3_coder": qwen3_coder.PARSER,
    "llama_json": llama_json.PARSER,
    "pythonic": pythonic.PARSER,
    "toolformer": toolformer.PARSER,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "parameters": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "count": {"type": "integer"},
                    "exact": {"type": ["boolean", "null"]},
                    "places": {"anyOf": [{"type": "array"}, {"type": "object"}]},
                },
            },
        },
    }
]
FIND = ToolCall("find", {"text": "a 'b' \"c\"\nd", "count": 3, "exact": True, "places": [1.5, {"x": None}]})

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
calls = st.lists(st.builds(ToolCall, names, st.dictionaries(names, json_values, max_size=3)), min_size=1, max_size=3)
MARKUP = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<function=f>", "<parameter=a>", "</parameter>", "</function>", "<|python_tag|>"]
    + ["[f(", ")->", "->", '{"name": "f", ', '"arguments": ', '"parameters": {', "}", "[", "]", ";", "NaN", "\\ud800"]
    + ["<|python_start|>", "f(a=", "-" * 500, "[" * 300, "9" * 5000, "<think>", "</think>", "\x00"]
)


QUICK = settings(max_examples=20)


@pytest.mark.parametrize("name", ["hermes", "llama_json", "pythonic"])
@given(calls=calls)
@QUICK
def test_calls_survive_writing_and_reading(name: str, calls: list[ToolCall]) -> None:
    parser = PARSERS[name]
    assert parser.parse(parser.write(calls)) == ParsedAnswer("", tuple(calls))


@given(text=texts, count=st.integers(), exact=st.booleans() | st.none(), places=st.lists(json_values, max_size=2))
@QUICK
def test_qwen3_coder_reads_values_by_the_schema_of_the_tool(text, count, exact, places) -> None:  # type: ignore[no-untyped-def]
    assume("</parameter>" not in text)
    call = ToolCall("find", {"text": text, "count": count, "exact": exact, "places": places})
    parser = PARSERS["qwen3_coder"]
    assert parser.parse(parser.write([call]), TOOLS) == ParsedAnswer("", (call,))


@given(argument=st.text("0123456789+-*/() [].a", max_size=30), before=st.sampled_from(["", "so ", "[f(1)->2] and "]))
def test_a_call_in_plain_text_survives_writing_and_reading(argument: str, before: str) -> None:
    assume("[a(" not in argument)
    parser, call = PARSERS["toolformer"], ToolCall("find", {"text": argument})
    assert parser.parse(before + parser.write([call]), TOOLS) == ParsedAnswer(before.strip(), (call,))


@pytest.mark.parametrize("name", PARSERS)
@QUICK
@given(parts=st.lists(texts | MARKUP, max_size=8), written=calls, cut=st.integers(0, 200))
def test_no_text_makes_a_parser_raise(name: str, parts: list[str], written: list[ToolCall], cut: int) -> None:
    check_any_text(PARSERS[name], parts, written, cut)


@pytest.mark.wide
@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=500, deadline=None)
@given(parts=st.lists(texts | MARKUP, max_size=12), written=calls, cut=st.integers(0, 200))
def test_no_text_of_very_many_makes_a_parser_raise(
    name: str, parts: list[str], written: list[ToolCall], cut: int
) -> None:
    check_any_text(PARSERS[name], parts, written, cut)


def check_any_text(parser: ToolParser, parts: list[str], written: list[ToolCall], cut: int) -> None:
    whole = "".join(parts)
    for text in (whole, parser.write(written)[:cut] + whole, whole + parser.write(written)[:cut]):
        parsed = parser.parse(text, TOOLS)
        assert not {"\ud800"} & set(json.dumps([dict(call.arguments) for call in parsed.calls], ensure_ascii=False))
        assert parsed.calls or parsed.problems or parsed.content == text
        for split in (reasoning.qwen3, reasoning.deepseek_r1):
            thought, answer = split(text)
            assert thought in text
            assert answer in text


def test_hermes_keeps_the_text_around_calls() -> None:
    first = '<tool_call>\n{"name": "a", "arguments": {"x": "</tool_call>"}}\n</tool_call>'
    text = f'First.\n{first}\n<tool_call>{{"name": "b"}}</tool_call> Then.'
    assert hermes.PARSER.parse(text) == ParsedAnswer(
        "First.\nThen.", (ToolCall("a", {"x": "</tool_call>"}), ToolCall("b"))
    )


def test_hermes_reads_arguments_that_are_the_text_of_an_object() -> None:
    text = '<tool_call>{"name": "a", "arguments": "{\\"x\\": 1}"}</tool_call>'
    assert hermes.PARSER.parse(text).calls == (ToolCall("a", {"x": 1}),)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "a", "arguments": {"x": 1}', "tool call 1: invalid JSON: Expecting ',' delimiter at character 35"),
        ('{"arguments": {}}', 'tool call 1: found no name of a tool; write {"name": NAME, "arguments": {...}}'),
        ('{"name": "a", "arguments": [1]}', "tool call 1: found a list as the arguments of a; write an object"),
        ('{"name": "a", "arguments": {"x": NaN}}', "tool call 1: invalid JSON: NaN is not a JSON number"),
        ('{"name": "a", "arguments": "{} 1"}', "tool call 1: found text after the arguments of a; write an object"),
        ('{"name": "a"} or so', "tool call 1: found no </tool_call> after it"),
        ("[1]", 'tool call 1: found a list; write an object {"name": NAME, "arguments": {...}}'),
        ("[" * 100_000, "tool call 1: the JSON is nested too deeply"),
        (
            '{"name": "a", "arguments": {"x": "\\ud800"}}',
            "tool call 1: invalid JSON: a string has half of a surrogate pair",
        ),
    ],
)
def test_hermes_says_what_is_wrong_and_reads_on(body: str, problem: str) -> None:
    parsed = hermes.PARSER.parse(f'<tool_call>{body}</tool_call><tool_call>{{"name": "b"}}</tool_call>')
    assert parsed == ParsedAnswer("", (ToolCall("b"),), (problem,))


def test_a_call_that_the_length_limit_cut_is_a_problem() -> None:
    parsed = hermes.PARSER.parse('<tool_call>{"name": "a"}')
    assert parsed == ParsedAnswer("", (), ("tool call 1: found no </tool_call> after it",))


def test_qwen3_coder_reports_values_of_the_wrong_type() -> None:
    text = "<tool_call>\n<function=find>\n<parameter=count>\nmany\n</parameter>\n</function>\n</tool_call>"
    (problem,) = qwen3_coder.PARSER.parse(text, TOOLS).problems
    assert problem == "tool call 1: parameter count: invalid JSON: Expecting value at character 0; write a JSON integer"
    assert qwen3_coder.PARSER.parse(text).calls == (ToolCall("find", {"count": "many"}),)


def test_llama_json_leaves_other_json_alone() -> None:
    for text in ('{"answer": 4}', '{"name": "Ada", "age": 36}', "4", '[{"name": "a", "parameters": {}}]'):
        assert llama_json.PARSER.parse(text) == ParsedAnswer(text)
    tagged = llama_json.PARSER.parse('Let me see. <|python_tag|>{"name": "a", "parameters": {"x": 1}}; {"name": 1}')
    assert tagged.content == "Let me see."
    assert tagged.calls == (ToolCall("a", {"x": 1}),)
    assert tagged.problems == ('tool call 2: found no name of a tool; write {"name": NAME, "parameters": {...}}',)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a(x=b)]", "found an argument that is no literal"),
        ("[a(x=__import__('os'))]", "found an argument that is no literal"),
        ("[a(1)]", "found an argument of a without its name"),
        ("[a(**{})]", "found an argument of a without its name"),
        ("[a(x=1), 2]", "found an item that is no call"),
        ("[a(x=1e999)]", "found a number that is too large"),
        ("[a(x=1)", "cannot parse the list"),
        ("[a(x=" + "(" * 100_000, "found 100005 characters"),
        ("[a(x=" + "(" * 5_000, "cannot parse the list"),
    ],
)
def test_pythonic_calls_take_literals_only(text: str, problem: str) -> None:
    parsed = pythonic.PARSER.parse(text)
    assert (parsed.calls, parsed.content) == ((), "")
    assert problem in parsed.problems[0]


def test_pythonic_calls_may_have_marks_and_names_of_json() -> None:
    text = "Yes. <|python_start|>[a.b(x=true, y=(1, -2.5), z={'k': null})]<|python_end|>"
    assert pythonic.PARSER.parse(text) == ParsedAnswer(
        "Yes.", (ToolCall("a.b", {"x": True, "y": [1, -2.5], "z": {"k": None}}),)
    )
    assert pythonic.PARSER.parse("[1, 2]") == ParsedAnswer("[1, 2]")


def test_a_call_in_plain_text_waits_at_the_end_only() -> None:
    parser = toolformer.PARSER
    assert parser.parse("[find(x)->y] so y", TOOLS) == ParsedAnswer("[find(x)->y] so y")
    assert parser.parse("[count(12)->", TOOLS).calls == (ToolCall("count", {"input": "12"}),)
    assert parser.parse("12->", TOOLS).problems == ("tool call: found no [name(argument) before the arrow",)
    assert parser.write_results(["4"]) == "4]"


def test_every_parser_is_a_plugin() -> None:
    specs = {spec.name: spec for spec in registry().all(ToolParserSpec)}
    assert set(PARSERS) <= set(specs)
    assert all(specs[name].load() is parser for name, parser in PARSERS.items())
    assert registry().get(ToolParserSpec, "qwen").load() is PARSERS["hermes"]
