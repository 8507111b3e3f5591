"""Weight versions per token, as spans: a completion that an update interrupts has tokens of several versions.

vLLM and SGLang report spans ``{version, start, end}``; trajectories carry one version per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from archon_core.errors import ServerError


@dataclass(frozen=True)
class VersionSpan:
    """Consecutive tokens that one version of the weights made.

    Attributes:
        version: the version.
        start: index of the first token.
        end: one past the last.
    """

    version: int
    start: int
    end: int


def spans_of(versions: Sequence[int]) -> tuple[VersionSpan, ...]:
    """The spans of per-token versions."""
    spans = []
    start = 0
    for version, tokens in groupby(versions):
        end = start + len(list(tokens))
        spans.append(VersionSpan(version, start, end))
        start = end
    return tuple(spans)


def versions_of(spans: Iterable[VersionSpan], n_tokens: int) -> tuple[int, ...]:
    """One version per token.

    Raises:
        ServerError: the spans leave a gap, overlap, do not cover ``n_tokens``, or a version goes back.
    """
    versions: list[int] = []
    for span in spans:
        if span.start != len(versions) or span.end <= span.start:
            raise ServerError(
                f"weight versions: found a span [{span.start}, {span.end}) after {len(versions)} tokens; allowed are "
                "adjacent spans; report it as a bug of the server"
            )
        if versions and span.version < versions[-1]:
            raise ServerError(
                f"weight versions: found version {span.version} after {versions[-1]}; versions never go back within a "
                "completion; report it as a bug of the server"
            )
        versions += [span.version] * (span.end - span.start)
    if len(versions) != n_tokens:
        raise ServerError(
            f"weight versions: found spans over {len(versions)} tokens; the completion has {n_tokens}; report it as a "
            "bug of the server"
        )
    return tuple(versions)
