"""``SessionParts`` from the options of agents: functions of the user's own modules, and parsers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from archon_core.contracts.rollout import GenerationConfig
from archon_core.contracts.tool_calls import ReasoningParserSpec, ToolParserSpec
from archon_core.contracts.workflows import WorkflowParts
from archon_core.errors import DataError
from archon_core.plugins import registry
from archon_core.plugins.own_functions import OwnFunction
from archon_engine.models.text import decode_literally
from archon_rl.agents.answers import AnswerReader
from archon_rl.agents.chat_messages import Matcher, same_messages
from archon_rl.agents.functions import (
    MATCHER,
    MATCHER_PARAMETERS,
    PREPROCESSOR_PARAMETERS,
    PREPROCESSORS,
    find_agent,
    find_matcher,
    find_preprocessor,
)
from archon_rl.agents.options import AgentOptions
from archon_rl.agents.prompts import PromptBuilder
from archon_rl.agents.session import SessionParts
from archon_rl.agents.source import AgentSource
from archon_rl.chosen_function import ChosenFunction
from archon_rl.rewards.checking import described
from archon_rl.text_encoding import is_plain


class _Preprocessor(ChosenFunction):
    option = PREPROCESSORS
    parameters = PREPROCESSOR_PARAMETERS


class _Matcher(ChosenFunction):
    option = MATCHER
    parameters = MATCHER_PARAMETERS


def agent_source(options: AgentOptions) -> AgentSource:
    """The agent that the options name. Raises ConfigError if there is none."""
    text = options.agent_cls_path
    found = find_agent(text)
    return AgentSource(text, found.target, folder=str(found.folder))


def preprocessor_source(text: str) -> ChosenFunction:
    """The function that an item of ``message_preprocessors`` names. Raises ConfigError if there is none."""
    return _source(_Preprocessor, text, find_preprocessor(text))


def matcher_source(text: str) -> ChosenFunction:
    """The function that ``prefix_matcher`` names. Raises ConfigError if there is none."""
    return _source(_Matcher, text, find_matcher(text))


def session_parts(
    options: AgentOptions,
    parts: WorkflowParts,
    *,
    use_chat_template: bool = True,
    training: GenerationConfig | None = None,
) -> SessionParts:
    """What the sessions of a run, or of its evaluations, share.

    Args:
        options: of agents.
        parts: of the run.
        use_chat_template: let the chat template render prompts, if there is one.
        training: for evaluations, the sampling options of training. An agent that names them in its requests must not
            fail in an evaluation, where the options of ``parts`` hold instead.

    Raises:
        ConfigError, UnknownNameError: a function or a parser cannot be loaded.
    """
    tokenizer = parts.tokenizer
    known = registry()
    reasoning = options.reasoning_parser
    return SessionParts(
        prompts=PromptBuilder(
            tokenizer,
            frozenset(parts.options.stop_token_ids),
            is_plain=is_plain(tokenizer, use_chat_template=use_chat_template),
            keeps_history=options.chat_template_type == "concat",
        ),
        reader=AnswerReader(
            known.get(ToolParserSpec, options.tool_call_parser).load(),
            None if reasoning is None else known.get(ReasoningParserSpec, reasoning).load(),
        ),
        decode=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        decode_literally=lambda ids: decode_literally(tokenizer, ids),
        options=parts.options,
        repeatable=[one for one in (training, parts.options) if one is not None],
        preprocessors=[_preprocessor(text) for text in options.message_preprocessors],
        matches=_matcher(options.prefix_matcher),
        max_tokens=options.engine_max_tokens,
        export_style=options.export_style,
        turn_discount=options.turn_discount,
        drops_repeated=options.drop_retry_orphans,
    )


def _source(kind: type[ChosenFunction], text: str, found: OwnFunction) -> ChosenFunction:
    return kind(text, found.target, folder=str(found.folder))


def _matcher(text: str | None) -> Matcher:
    return same_messages if text is None else matcher_source(text).load()


def _preprocessor(text: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    function = preprocessor_source(text).load()

    def preprocess(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            found = function([dict(message) for message in messages])
        except Exception as error:
            raise DataError(
                f"{_Preprocessor.option} {text!r} raised {described(error)}; correct the function"
            ) from error
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise DataError(
                f"{_Preprocessor.option} {text!r} returned a value of type {type(found).__name__}; allowed is a list "
                "of messages; correct the function"
            )
        return list(found)

    return preprocess
