"""Tools in processes: limits, failures, and what the model reads about them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator

import pytest

from archon_core.contracts.tool_calls import ToolCall
from archon_core.errors import ArchonError, ConfigError
from archon_rl.tools.calls import ToolResult
from archon_rl.tools.source import ToolSource
from archon_rl.tools.tool_process import ToolProcess
from archon_rl.tools.toolbox import ToolBox

NAMES = ("add", "choose", "fail", "odd", "give_up")


def _source(name: str, place: str = "tool_process") -> ToolSource:
    return ToolSource(name, f"misbehaving_tools:{name}", place=place)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[ToolProcess]:
    names = ("read_file", "connect", "take_memory", "secrets", "use_processor", "leave", "hang")
    os.environ["MY_SERVICE_KEY"] = "hunter2"
    process = ToolProcess([_source(name) for name in names], timeout=1, memory_mb=64)
    yield process
    process.close()
    del os.environ["MY_SERVICE_KEY"]


def test_a_sandbox_opens_no_file(sandbox: ToolProcess) -> None:
    result = sandbox.call(ToolCall("read_file", {"path": __file__}))
    assert result == ToolResult(f"Error: OSError: [Errno 24] Too many open files: '{__file__}'", failed=True)


def test_a_sandbox_opens_no_connection(sandbox: ToolProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        result = sandbox.call(ToolCall("connect", {"port": server.getsockname()[1]}))
    assert result.failed
    assert "Too many open files" in result.text


def test_a_sandbox_has_little_memory_and_no_secrets(sandbox: ToolProcess) -> None:
    assert sandbox.call(ToolCall("take_memory", {"mb": 8})) == ToolResult(str(8 * 2**20))
    assert sandbox.call(ToolCall("take_memory", {"mb": 200})) == ToolResult("Error: not enough memory", failed=True)
    assert "hunter2" not in sandbox.call(ToolCall("secrets")).text


def test_a_process_that_hangs_or_ends_is_replaced(sandbox: ToolProcess) -> None:
    assert sandbox.call(ToolCall("use_processor")) == ToolResult("Error: no result within 1 seconds", failed=True)
    assert sandbox.call(ToolCall("leave", {"code": 3})) == ToolResult("Error: the tool ended its process", failed=True)
    assert sandbox.call(ToolCall("take_memory", {"mb": 1})) == ToolResult(str(2**20))


def test_processes_that_a_tool_starts_end_with_it() -> None:
    process = ToolProcess([_source("hang")], timeout=0.5)
    process.schemas()
    group = process._group._leader.pid  # type: ignore[union-attr]
    assert process.call(ToolCall("hang", {"seconds": 60.0})).failed
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    pytest.fail("a process of the tool lives on")


@pytest.fixture(scope="module")
def box() -> Iterator[ToolBox]:
    tools = [_source(name) for name in NAMES]
    tools.append(ToolSource("calculator", "archon_rl.tools.calculator:calculator", place="here"))
    tools.append(ToolSource("python", "archon_rl.tools.python_expression:python", place="sandbox"))
    box = ToolBox(tools, processes=1, timeout=5, memory_mb=128, longest=40)
    yield box
    box.close()


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (ToolCall("add", {"a": 2}), "3"),
        (ToolCall("choose", {"text": "\u00e9", "how": "last", "words": ["a"]}), '["\u00e9", "last", ["a"], null]'),
        (ToolCall("calculator", {"expression": "6*7"}), "42"),
        (ToolCall("python", {"expression": "sorted('ba')"}), "['a', 'b']"),
        (ToolCall("python", {"expression": "'\\ud800' * 50"}), "?" * 40 + "... (10 more characters)"),
    ],
)
def test_a_call_has_a_result(box: ToolBox, call: ToolCall, result: str) -> None:
    assert asyncio.run(box.call(call)) == ToolResult(result)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (ToolCall("subtract"), f"found no tool 'subtract'; the tools are {', '.join(NAMES)}, calculator, python"),
        (ToolCall("add"), "add: the argument 'a' is missing"),
        (ToolCall("add", {"a": 1, "c": 2}), "add: found the argument 'c'; allowed are a, b"),
        (ToolCall("add", {"a": "1"}), "add: the argument 'a' must be of type integer"),
        (ToolCall("add", {"a": True}), "add: the argument 'a' must be of type integer"),
        (ToolCall("choose", {"text": "", "how": "x"}), "choose: the argument 'how' must be one of 'first', 'last'"),
        (ToolCall("fail", {"text": "it"}), "LookupError: nothing about it"),
        (ToolCall("odd", {"value": 1}), "TypeError: Object of type set is not JSO... (14 more characters)"),
        (ToolCall("give_up"), "the tool ended its process"),
        (ToolCall("calculator", {"expression": "1/0"}), "division by zero"),
        (ToolCall("python", {"expression": "1 / 0"}), "ZeroDivisionError: division by zero"),
        (ToolCall("python", {"expression": "list(range(10**9))"}), "not enough memory"),
    ],
)
def test_a_call_without_a_result_has_an_explanation_for_the_model(box: ToolBox, call: ToolCall, reason: str) -> None:
    assert asyncio.run(box.call(call)) == ToolResult(f"Error: {reason}", failed=True)


def test_calls_run_at_the_same_time(box: ToolBox) -> None:
    async def all_of_them() -> list[ToolResult]:
        return await asyncio.gather(*(box.call(ToolCall("add", {"a": number})) for number in range(50)))

    assert [result.text for result in asyncio.run(all_of_them())] == [str(number + 1) for number in range(50)]


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (_source("untyped"), "tool 'untyped': found no type hint for 'value'"),
        (ToolSource("gone", "misbehaving_tools:gone"), "has no attribute 'gone'"),
        (ToolSource("ends", "ends_at_import:f"), "the process that imports ends ended"),
    ],
)
def test_a_tool_that_cannot_be_imported_or_described_is_an_error(tmp_path, monkeypatch, source, problem) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "ends_at_import.py").write_text("import os; os._exit(1)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArchonError, match=problem):
        ToolBox([source], processes=1, timeout=5, memory_mb=64, longest=100)


def test_two_tools_of_one_name_are_an_error() -> None:
    with pytest.raises(ConfigError, match="two tools of the name 'add'"):
        ToolBox([_source("add"), _source("add")], processes=1, timeout=5, memory_mb=64, longest=100)
