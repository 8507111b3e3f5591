"""``ToolBox``: the tools of a run, and where their calls run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archon_core.contracts.tool_calls import ToolCall
from archon_core.errors import ConfigError
from archon_rl.tools.calls import ToolResult, call_tool, failure
from archon_rl.tools.schema import argument_problem, tool_schema
from archon_rl.tools.source import ToolSource
from archon_rl.tools.tool_process import ToolProcess
from archon_rl.worker_threads import WorkerThreads

_Threads = WorkerThreads[ToolProcess, ToolCall | None, Any]


class ToolBox:
    """Calls tools, some of them in processes.

    Args:
        tools: the tools; their names are different.
        processes: number of processes for each place that has tools.
        timeout: time limit of a call in seconds.
        memory_mb: MiB that a call in a sandbox may allocate.
        longest: characters of a result to keep.

    Raises:
        ArchonError: a tool cannot be imported or described.
    """

    def __init__(
        self, tools: Sequence[ToolSource], *, processes: int, timeout: float, memory_mb: int, longest: int
    ) -> None:
        names = [tool.name for tool in tools]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"tools.names: found two tools of the name {name!r}; rename the function, or leave one out"
                )
        self._longest = longest
        self._here = {tool.name: tool.load() for tool in tools if tool.place == "here"}
        schemas = {name: tool_schema(name, function) for name, function in self._here.items()}
        self._threads: dict[str, _Threads] = {}
        for place, limit in (("tool_process", 0), ("sandbox", memory_mb)):
            inside = [tool for tool in tools if tool.place == place]
            if not inside:
                continue
            threads = _threads(inside, processes, timeout, limit, longest)
            for schema in threads.submit(None).result():
                name = schema["function"]["name"]
                schemas[name], self._threads[name] = schema, threads
        self._schemas = {name: schemas[name] for name in names}

    @property
    def schemas(self) -> list[Mapping[str, Any]]:
        """The JSON schema of every tool, as chat templates and parsers get it."""
        return list(self._schemas.values())

    async def call(self, call: ToolCall) -> ToolResult:
        """The result of a call; what is wrong with it is text for the model."""
        schema = self._schemas.get(call.name)
        if schema is None:
            return failure(f"found no tool {call.name!r}; the tools are {', '.join(self._schemas)}")
        problem = argument_problem(schema, call.arguments)
        if problem:
            return failure(f"{call.name}: {problem}")
        if call.name in self._here:
            return call_tool(self._here[call.name], call.arguments, longest=self._longest)
        result: ToolResult = await self._threads[call.name].run(call)
        return result

    def close(self) -> None:
        """End the processes."""
        for threads in set(self._threads.values()):
            threads.close()


def _threads(tools: Sequence[ToolSource], processes: int, timeout: float, memory_mb: int, longest: int) -> _Threads:
    def build() -> ToolProcess:
        return ToolProcess(tools, timeout=timeout, memory_mb=memory_mb, longest=longest)

    def work(process: ToolProcess, call: ToolCall | None) -> Any:
        return process.schemas() if call is None else process.call(call)

    return WorkerThreads(build, work, processes, "archon-tools")
