"""Agent workflows on a scripted client."""

from __future__ import annotations

import contextlib
from pathlib import Path

from chat_client import ChatClient, parts_of
from chat_tokenizers import CHATML, chat_tokenizer

from archon_rl.agents.options import AgentOptions
from archon_rl.agents.session_parts import session_parts
from archon_rl.agents.source import AgentCaller
from archon_rl.agents.workflow import AgentWorkflow, InlineAgents

TOOL_TEMPLATE = CHATML.replace(
    "{% for m in messages %}",
    "{% if tools %}<|im_start|>tools\n{{ tools | map(attribute='function') | map(attribute='name') | join(' ') }}"
    "<|im_end|>\n{% endif %}{% for m in messages %}",
)


@contextlib.asynccontextmanager
async def workflow_of(agent=None, *, template=TOOL_TEMPLATE, script=None, folder=Path("/nonexistent"), **given):
    """A workflow and its client; fields of ``ChatClient`` and options of agents may be given. ``agent`` runs
    inline; without one, agents start sessions from outside."""
    tokenizer = chat_tokenizer(template)
    fields = {name: given.pop(name) for name in ("answer", "error", "n_errors", "seconds") if name in given}
    client = ChatClient(tokenizer, script=script, **fields)
    options = AgentOptions(**{"mode": "inline" if agent else "online", **given})
    agents = InlineAgents(AgentCaller(agent)) if callable(agent) else agent
    workflow = AgentWorkflow(options, session_parts(options, parts_of(tokenizer)), agents, folder / "agents.json")
    try:
        yield workflow, client
    finally:
        await workflow.close()
