"""The checks after a storm. Each problem names the server, step or file; no problem means that the storm was survived.

Only records are read: what servers and trainer ranks wrote down, and the trainer's weights. So a test can plant a fault
in the records and see that the checks find it.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator

from weather.options import StormOptions
from weather.oracle import check_tokens_and_training
from weather.records import Line, Records, of_kind
from weather.report import Report

SLACK_SECONDS = 5.0
"""What a slow machine adds to a time limit."""

LEAST_STRUCK = 0.6
"""Least share of events that must have struck: a storm that misses shows nothing."""

SHOWN = 12

PORT_TAKEN = "cannot listen there"
"""Another process may take the port of a server that flaps; its successor then says so, and is replaced."""


def check(records: Records) -> Report:
    """Check everything."""
    [storm] = of_kind(records.sky, "storm")
    options = StormOptions(**storm["options"])
    tokens = check_tokens_and_training(records, options)
    problems = [
        *_ranks(records, options),
        *_decisions(records),
        *_members(records),
        *_deaths(records),
        *_paused(records),
        *_hangs(records, options),
        *_left_behind(records),
        *_struck(records, storm),
        *tokens.problems,
    ]
    counts = {
        "of " + str(len(storm["events"])) + " events struck": len(_events_struck(records)),
        "servers": len(records.servers),
        "tokens consumed": tokens.consumed,
        "tokens in servers' logs": tokens.logged,
        "failures in publications": sum(len(line["failed"]) for line in of_kind(records.trainers[0], "decision")),
    }
    return Report(tuple(problems), counts)


def _ranks(records: Records, options: StormOptions) -> Iterator[str]:
    for line in of_kind(records.sky, "ranks"):
        for rank, code in line["failed"].items():
            yield f"rank {rank} ended with code {code}; its log is logs/rank-{rank}.log"
    for rank, lines in enumerate(records.trainers):
        steps = [line["version"] for line in of_kind(lines, "step")]
        if steps != list(range(options.versions)):
            yield f"rank {rank} finished {len(steps)} of {options.versions} steps"
    if len(records.trainers) != options.ranks:
        yield f"found records of {len(records.trainers)} ranks, expected {options.ranks}"


def _decisions(records: Records) -> Iterator[str]:
    """All ranks decided alike, and had the same batches."""
    first, *others = records.trainers
    for rank, lines in enumerate(others, start=1):
        for kind, name in (("decision", "decision"), ("batch", "batch")):
            for mine, theirs in zip(of_kind(first, kind), of_kind(lines, kind), strict=False):
                if _without_time(mine) != _without_time(theirs):
                    yield f"step {mine['version']}: rank {rank} has another {name} than rank 0"


def _members(records: Records) -> Iterator[str]:
    """Whoever was in service after a publication held its version, and labelled tokens rightly."""
    for decision in of_kind(records.trainers[0], "decision"):
        for incarnation in decision["members"]:
            switches = [
                line
                for line in of_kind(records.servers.get(incarnation, ()), "committed", "lied")
                if line["at"] <= decision["at"]
            ]
            last = switches[-1] if switches else {"kind": "nothing", "version": None, "lying": True}
            if last["kind"] != "committed" or last["version"] != decision["version"] or last["lying"]:
                yield (
                    f"server {incarnation[:8]} was in service at version {decision['version']}; its log says "
                    f"{last['kind']} {last['version']}"
                )


def _deaths(records: Records) -> Iterator[str]:
    """Servers end by a signal of the storm or by their own decision, never by an error of theirs."""
    for line in of_kind(records.sky, "died"):
        if line["code"] not in (0, -signal.SIGKILL, -signal.SIGTERM) and PORT_TAKEN not in line["reason"]:
            yield f"server {line['name']} ended with code {line['code']}: {line['reason']}"


def _without_time(line: Line) -> dict:
    return {name: value for name, value in line.items() if name != "at"}


def _paused(records: Records) -> Iterator[str]:
    """No server that lived to the end is paused, by its log and by its answer."""
    for line in of_kind(records.sky, "state"):
        if not line["answers"]:
            yield f"server {line['name']} did not answer at the end"
            continue
        own = of_kind(records.servers.get(line["incarnation"], ()), "paused", "resumed")
        if line["paused"]:
            yield f"server {line['name']} was left paused: it says so"
        elif own and own[-1]["kind"] == "paused":
            yield f"server {line['name']} was left paused: its log ends with a pause"


def _hangs(records: Records, options: StormOptions) -> Iterator[str]:
    for line in of_kind(records.sky, "ranks", "servers"):
        for name in line["hanging"]:
            yield f"{line['kind'][:-1]} {name} hung and was killed; its stacks are in logs/"
    for rank, lines in enumerate(records.trainers):
        for line in of_kind(lines, "step"):
            seconds = line["publishing"] + line["sampling"]
            if seconds > options.longest_step + SLACK_SECONDS:
                yield f"rank {rank}: step {line['version']} took {seconds:.1f} s, above {options.longest_step:.1f} s"
        for line in of_kind(lines, "collected", "lost"):
            if line["seconds"] > options.request_seconds + SLACK_SECONDS:
                yield f"a request took {line['seconds']:.1f} s; its limit is {options.request_seconds:.1f} s"


def _left_behind(records: Records) -> Iterator[str]:
    ends = of_kind(records.sky, "end")
    if not ends:
        yield "the storm has no end in its records"
    for line in ends:
        for process in line["processes"]:
            yield f"a process was left behind: {process}"
        for segment in line["segments"]:
            yield f"a segment was left behind in /dev/shm: {segment}"


def _events_struck(records: Records) -> set[int]:
    logs = [records.sky, records.trainers[0], *records.servers.values()]
    return {line["event"] for lines in logs for line in of_kind(lines, "struck")}


def _struck(records: Records, storm: Line) -> Iterator[str]:
    struck = _events_struck(records)
    events = storm["events"]
    if len(struck) < LEAST_STRUCK * len(events):
        missed = Counter(event["kind"] for event in events if event["number"] not in struck)
        listed = ", ".join(f"{kind} {n}x" for kind, n in missed.most_common(SHOWN))
        yield f"only {len(struck)} of {len(events)} events struck, so the storm shows little; missed: {listed}"
