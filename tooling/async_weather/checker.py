"""The checks after a storm. Each problem names what it is about; no problem means that the storm was survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from archon_core import assemble
from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from archon_train.experiment import load_config
from async_weather.options import AsyncStormOptions
from async_weather.reading import all_lines
from weather.records import Line, of_kind
from weather.report import Report

TOKEN_TOLERANCE = 1e-5
"""Of a log-probability; the models are float64."""

WEIGHT_TOLERANCE = 1e-9
MOST_PROBLEMS = 5
EXPORT = "storm/run/export/model.safetensors"


def check(folder: Path, undisturbed: Path | None = None) -> Report:
    """Check the records of a storm.

    Args:
        folder: of the storm.
        undisturbed: of the same run without kills, whose weights this one must have; ``None`` for none.
    """
    sky, trainer = all_lines(folder / "sky.jsonl"), all_lines(folder / "trainer.jsonl")
    [storm] = of_kind(sky, "storm")
    options = AsyncStormOptions(**{**storm["options"], "kinds": tuple(storm["options"]["kinds"])})
    steps, versions = lineage(trainer)
    problems = [*_ends(sky), *_steps(steps, versions, options)]
    if not problems:
        problems += _tokens(folder, steps)
        if undisturbed is not None:
            problems += _weights(folder, undisturbed)
    killed = Counter(line["what"] for line in of_kind(sky, "killed"))
    counts = {
        **{f"times {kind} killed": killed[kind] for kind in options.kinds},
        "ranks after the first killed": sum(bool(line.get("rank")) for line in of_kind(sky, "killed")),
        "starts": len(of_kind(sky, "ended")),
        "records consumed": sum(len(step["groups"]) for step in steps),
        "of them dropped": sum(bool(group["reason"]) for step in steps for group in step["groups"]),
        "tokens": sum(sum(t[1]) for step in steps for group in step["groups"] for t in group["trajectories"]),
        "largest staleness": max((int(step["staleness_max"]) for step in steps), default=0),
    }
    return Report(tuple(problems), counts)


def lineage(trainer: Sequence[Line]) -> tuple[list[Line], dict[int, int]]:
    """The steps of the resumed lineage, and the step after which each version was published in it.

    A start of the run takes back the steps after its checkpoint: those that it repeats replace the earlier ones.
    """
    steps: dict[int, Line] = {}
    published: dict[int, int] = {}
    for line in trainer:
        if line["kind"] == "step":
            steps = {step: old for step, old in steps.items() if step < line["step"]} | {line["step"]: line}
        elif line["kind"] == "published":
            published = {version: step for version, step in published.items() if step < line["step"]}
            published[line["version"]] = line["step"]
    return [steps[step] for step in sorted(steps)], published


def _ends(sky: Sequence[Line]) -> Iterator[str]:
    """The run finished; no start of it left anything behind, or failed without a kill."""
    disturbed = False
    for line in sky:
        if line["kind"] == "killed":
            disturbed = True
        elif line["kind"] == "ended":
            what = f"start {line['start']}"
            if line["code"] is None:
                yield f"{what} hung; the stacks of its processes are in logs/"
            elif line["code"] and not disturbed:
                yield f"{what} ended with code {line['code']} although nothing was killed; see logs/"
            yield from (f"{what} left a process behind: {one}" for one in line["processes"])
            disturbed = False
    # Where no server outlives the trainer, the next start removes its shared memory.
    for line in of_kind(tuple(sky), "ended")[-1:]:
        yield from (f"a segment was left behind in /dev/shm: {one}" for one in line["segments"])
    [end] = of_kind(tuple(sky), "end")
    if not end["finished"]:
        yield f"the run did not finish in {end['starts']} starts"
    if end["unused"]:
        yield f"the run finished before {end['unused']} kills"


def _steps(steps: Sequence[Line], published: Mapping[int, int], options: AsyncStormOptions) -> Iterator[str]:
    found = [step["step"] for step in steps]
    if found != list(range(options.steps)):
        yield f"found the steps {found}, expected 0 to {options.steps - 1}"
        return
    numbers = [group["number"] for step in steps for group in step["groups"]]
    if numbers != list(range(len(numbers))):
        yield f"records were not consumed once each, in order: {numbers}"
    for step in steps:
        if step["stale_prompts"]:
            yield f"step {step['step']}: {step['stale_prompts']:.0f} groups were too stale"
        for group in step["groups"]:
            accepted, versions = not group["reason"], {v for t in group["trajectories"] for v in t[3] if v >= 0}
            if accepted and not versions <= published.keys():
                yield f"step {step['step']}, record {group['number']}: versions {sorted(versions)} were never published"
            elif accepted and step["step"] - min(published[v] for v in versions) > options.staleness:
                yield f"step {step['step']}, record {group['number']}: a token is older than {options.staleness} steps"
            if accepted and any(list(_sampled(t, 3)) != sorted(_sampled(t, 3)) for t in group["trajectories"]):
                yield f"step {step['step']}, record {group['number']}: versions go back"


def _sampled(trajectory: Any, field: int) -> Iterator[Any]:
    return (value for value, sampled in zip(trajectory[field], trajectory[1], strict=True) if sampled)


def _tokens(folder: Path, steps: Sequence[Line]) -> list[str]:
    """Compute the log-probability of every consumed token again, with the weights of the version on its label."""
    config = load_config(folder / "config.yaml", ["actor.backend=archon:d1"]).config
    engine = assemble(config.actor, role="actor", layout="archon:d1", seed=0, total_steps=1)
    engine.initialize()
    rows = [
        (step["step"], group["number"], trajectory)
        for step in steps
        for group in step["groups"]
        for trajectory in group["trajectories"]
        if len(trajectory[0]) > 1
    ]
    problems: list[str] = []
    for version in sorted({v for _, _, t in rows for v in t[3] if v >= 0}):
        engine.load(folder / "weights" / f"v{version}", "hf")
        own = [row for row in rows if version in row[2][3]]
        batch = Batch.from_sequences([row[2][0] for row in own])
        values = engine.forward_batch(batch, OutputRequest(("logprobs",)))["logprobs"].tolist()
        start = 0
        for step, number, (ids, mask, logprobs, versions) in own:
            for place in range(1, len(ids)):
                expected = values[start + place - 1]
                if mask[place] and versions[place] == version and abs(logprobs[place] - expected) > TOKEN_TOLERANCE:
                    problems.append(
                        f"step {step}, record {number}: token {place} is labelled {version} and has log-probability "
                        f"{logprobs[place]:.6f}; the weights of that version give {expected:.6f}"
                    )
                    break
            start += len(ids)
    return problems[:MOST_PROBLEMS]


def _weights(folder: Path, undisturbed: Path) -> Iterator[str]:
    found, expected = load_file(folder / EXPORT), load_file(undisturbed / EXPORT)
    for name, tensor in expected.items():
        difference = float((found[name] - tensor).abs().max())
        if not difference <= WEIGHT_TOLERANCE:
            yield f"{name} differs by {difference:.2g} from the run without kills"
            return
