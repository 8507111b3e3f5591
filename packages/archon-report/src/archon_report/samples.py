"""Completions on a page, with their rewards; the colour of a token is its log-probability gap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from archon_core.run_files.trajectories import Line

MOST_SAMPLES = 8
"""Most completions of a step on a page."""

MOST_TOKENS = 600
MOST_CHARACTERS = 4000
"""Longest prompt and longest completion without pieces that a page shows."""

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
    if any(line.trainer_logprobs for line in everything):
        yield _legend("gap", GAPS, "Colours: distance of the sampler's log-probability to the trainer's, in nats.")
    else:
        yield _legend("surprise", SURPRISES, "Colours: negative log-probability under the sampler, in nats.")
    for step, lines in chosen.items():
        shown = f", {len(lines)} of {len(steps[step])} by reward" if len(lines) < len(steps[step]) else ""
        yield f"<h4>Step {step}{shown}</h4>"
        yield f'<div class="grid">{"".join(map(draw_sample, lines))}</div>'


def draw_sample(line: Line) -> str:
    """One completion, below its prompt."""
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
    return f'<article class="sample"><header>{" · ".join(facts)}</header><p>{"".join(_body(line))}</p></article>'


def mean_gap(line: Line) -> float | None:
    """The mean distance of the log-probabilities of sampled tokens; ``None`` if the trainer's are unknown."""
    gaps = [abs(one) for one in _gaps(line) if one is not None]
    return sum(gaps) / len(gaps) if gaps else None


def _gaps(line: Line) -> list[float | None]:
    """Per token, the sampler's log-probability minus the trainer's; ``None`` for tokens that were not sampled."""
    if len(line.trainer_logprobs) != len(line.token_ids):
        return [None] * len(line.token_ids)
    both = zip(line.logprobs, line.trainer_logprobs, line.loss_mask, strict=True)
    return [ours - theirs if sampled else None for ours, theirs, sampled in both]


def _body(line: Line) -> Iterator[str]:
    pieces = iter(line.pieces if sum(n for _, n in line.pieces) == sum(line.loss_mask) else ())
    gaps, place, drawn = _gaps(line), 0, 0
    for segment in line.segments:
        if segment.version is None:
            yield f'<span class="prompt">{escape(_cut(segment.text))}</span>'
            continue
        if not line.pieces:
            yield f'<span class="whole">{escape(_cut(segment.text))}</span>'
            continue
        length = 0
        while length < len(segment.text):
            text, n_tokens = next(pieces, (segment.text[length:], 0))
            while place < len(line.loss_mask) and not line.loss_mask[place]:
                place += 1
            if drawn < MOST_TOKENS:
                yield _token(line, gaps, place, n_tokens, text)
            place, drawn, length = place + n_tokens, drawn + max(1, n_tokens), length + max(1, len(text))
    if drawn > MOST_TOKENS:
        yield f'<span class="note"> … {drawn - MOST_TOKENS} more tokens</span>'


def _token(line: Line, gaps: Sequence[float | None], place: int, n_tokens: int, text: str) -> str:
    mine = range(place, min(place + n_tokens, len(line.logprobs)))
    if not mine:
        return escape(text)
    logprob = sum(line.logprobs[i] for i in mine)
    known = [gaps[i] for i in mine if gaps[i] is not None]
    title = f"log-probability {logprob:.3f}"
    if known:
        gap = sum(known, 0.0)
        title += f", trainer {logprob - gap:.3f}, gap {gap:+.3f}"
        shade = _shade(abs(gap), GAPS)
    else:
        shade = _shade(-logprob, SURPRISES)
    if len({line.versions[i] for i in mine}) == 1 and len(line.weights) > 1:
        title += f", version {line.versions[place]}"
    visible = text.replace("\n", "\u21b5\n")
    return f'<span class="t{shade}" title="{escape(title)}">{escape(visible)}</span>'


def _shade(value: float, bounds: Sequence[float]) -> int:
    return sum(value > bound for bound in bounds) if math.isfinite(value) else len(bounds)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} … {len(text) - MOST_CHARACTERS} more"


def _legend(name: str, bounds: Sequence[float], text: str) -> str:
    steps = [f"up to {bounds[0]:g}", *(f"up to {bound:g}" for bound in bounds[1:]), "more"]
    items = "".join(f'<li><span class="t{shade}">{label}</span></li>' for shade, label in enumerate(steps))
    return f'<p class="note">{text}</p><ul class="legend" data-colours="{name}">{items}</ul>'
