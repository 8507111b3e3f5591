"""Completions on a page, with their rewards; the colour of a token is its log-probability gap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import accumulate, groupby

from archon_core.run_files.trajectories import Line

MOST_SAMPLES = 8
"""Most completions of a step on a page."""

MOST_TOKENS = 600
MOST_CHARACTERS = 4000
"""Longest prompt and longest completion without pieces that a page shows."""

LONG_PROMPT = 500
"""A prompt of more characters scrolls in a box, so that its completion stays in sight."""

NO_TEXT = "\u2205"
"""Stands for a token without text, such as one that the tokenizer does not know."""

GAPS = (0.01, 0.05, 0.2, 0.5, 1.0)
"""Bounds of the colours: distance of the sampler's log-probability to the trainer's, in nats."""

SURPRISES = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Bounds of the colours by log-probability, likewise."""


def choose(lines: Sequence[Line], most: int = MOST_SAMPLES) -> list[Line]:
    """Completions for readers: the best, the worst, and others evenly spread between them by reward.

    Where a step has some with details about their tokens, only among these.
    """
    ordered = sorted(
        [line for line in lines if line.pieces] or lines,
        key=lambda line: (-line.reward if math.isfinite(line.reward) else math.inf, line.group),
    )
    if len(ordered) <= most:
        return ordered
    return [ordered[round(place * (len(ordered) - 1) / (most - 1))] for place in range(most)]


def draw_samples(steps: Mapping[int, Sequence[Line]]) -> Iterator[str]:
    """The completions of all steps, and a legend."""
    chosen = {step: choose(lines) for step, lines in steps.items()}
    everything = [line for lines in chosen.values() for line in lines]
    by_gap = any(line.trainer_logprobs for line in everything)
    if by_gap:
        what = "distance of the sampler's log-probability to the trainer's before the step"
        yield _legend("gap", GAPS, f"Colours: {what}, in nats.")
    else:
        yield _legend("surprise", SURPRISES, "Colours: negative log-probability under the sampler, in nats.")
    for step, lines in chosen.items():
        shown = f", {len(lines)} of {len(steps[step])} by reward" if len(lines) < len(steps[step]) else ""
        yield f"<h4>Step {step}{shown}</h4>"
        yield f'<div class="grid">{"".join(draw_sample(line, by_gap=by_gap) for line in lines)}</div>'


def draw_sample(line: Line, *, by_gap: bool) -> str:
    """One completion, after its prompt.

    Args:
        line: the trajectory.
        by_gap: colours are gaps; a token whose gap is unknown then has none. Otherwise they are log-probabilities.
    """
    gap = mean_gap(line)
    facts = [f"reward <b>{line.reward:.4g}</b>", f"group {line.group}", f"{sum(line.loss_mask)} tokens"]
    if gap is not None:
        facts.append(f"mean gap {gap:.2g}")
    if line.weights:
        facts.append(f"version {', '.join(map(str, line.weights))}")
    if line.truncated:
        facts.append("cut at the length limit")
    if line.dropped:
        facts.append(f"not trained on: {escape(line.dropped)}")
    text = "".join(_body(line, by_gap))
    return f'<article class="sample"><header>{" · ".join(facts)}</header><p>{text}</p></article>'


def mean_gap(line: Line) -> float | None:
    """The mean distance of the log-probabilities of sampled tokens; ``None`` if the trainer's are unknown."""
    gaps = [abs(one) for one in _gaps(line) if one is not None]
    return sum(gaps) / len(gaps) if gaps else None


def _gaps(line: Line) -> list[float | None]:
    """Per token, the sampler's log-probability minus the trainer's; ``None`` for tokens that were not sampled."""
    if not line.trainer_logprobs:
        return [None] * len(line.token_ids)
    both = zip(line.logprobs, line.trainer_logprobs, line.loss_mask, strict=True)
    return [ours - theirs if sampled else None for ours, theirs, sampled in both]


def _body(line: Line, by_gap: bool) -> Iterator[str]:
    sampled = [place for place, mine in enumerate(line.loss_mask) if mine]
    ends = _segment_ends(line)
    if len(ends) != len(line.segments) or sum(n for _, n in line.pieces) != len(sampled):
        ends = []
    pieces, gaps, drawn = iter(line.pieces), _gaps(line) if by_gap else None, 0
    for number, segment in enumerate(line.segments):
        if segment.version is None:
            long = " long" if len(segment.text) > LONG_PROMPT else ""
            yield f'<span class="prompt{long}">{escape(_cut(segment.text))}</span>'
        elif not ends:
            yield f'<span class="whole">{escape(_cut(segment.text)) or NO_TEXT}</span>'
        else:
            # By tokens, not by characters: tokens may have no text.
            while drawn < len(sampled) and sampled[drawn] < ends[number]:
                text, n_tokens = next(pieces, ("", 1))
                if drawn < MOST_TOKENS:
                    yield _token(line, gaps, sampled[drawn : drawn + n_tokens], text)
                drawn += n_tokens
    if drawn > MOST_TOKENS:
        yield f'<span class="note"> … {drawn - MOST_TOKENS} more tokens</span>'


def _segment_ends(line: Line) -> list[int]:
    """Where the tokens of each segment end: a segment is a run of tokens that one version sampled, or that none did."""
    origins = [v if mine else None for v, mine in zip(line.versions, line.loss_mask, strict=True)]
    return list(accumulate(len(list(run)) for _, run in groupby(origins)))


def _token(line: Line, gaps: Sequence[float | None] | None, mine: Sequence[int], text: str) -> str:
    logprob = sum(line.logprobs[i] for i in mine)
    title = f"log-probability {logprob:.3f}"
    if gaps is None:
        shade = _shade(-logprob, SURPRISES)
    else:
        gap = sum((gaps[i] or 0.0 for i in mine), 0.0)
        shade = _shade(abs(gap), GAPS)
        if all(gaps[i] is not None for i in mine):
            title += f", trainer {logprob - gap:.3f}, gap {gap:+.3f}"
    if len({line.versions[i] for i in mine}) == 1 and len(line.weights) > 1:
        title += f", version {line.versions[mine[0]]}"
    visible = text.replace("\n", "\u21b5\n") or NO_TEXT
    return f'<span class="t{shade}" title="{escape(title)}">{escape(visible)}</span>'


def _shade(value: float, bounds: Sequence[float]) -> int:
    return sum(value > bound for bound in bounds) if math.isfinite(value) else len(bounds)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … {len(text) - MOST_CHARACTERS} more"


def _legend(name: str, bounds: Sequence[float], text: str) -> str:
    steps = [f"up to {bounds[0]:g}", *(f"up to {bound:g}" for bound in bounds[1:]), "more"]
    items = "".join(f'<li><span class="t{shade}">{label}</span></li>' for shade, label in enumerate(steps))
    return f'<p class="note">{text}</p><ul class="legend" data-colours="{name}">{items}</ul>'
