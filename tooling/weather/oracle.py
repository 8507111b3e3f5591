"""What tokens and training should have been: one process, without servers, from the records.

Every token's log-probability is computed again from the weights that the trainer saved under the token's version. And
training is repeated on the recorded batches, from the first weights on; it must arrive at all saved weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from safetensors.torch import load_file

from archon_core.contracts.batch import Batch
from archon_core.contracts.loss import OutputRequest
from weather.digest import digest_of
from weather.options import StormOptions
from weather.records import Line, Records, of_kind
from weather.task import build_trainer, train_on

TOKEN_TOLERANCE = 1e-5
"""Of a log-probability. The models are float64, so the right weights agree far better, and others do not."""

WEIGHT_TOLERANCE = 1e-9
"""Of a weight, relative to the largest of its tensor: sums in another order."""

MOST_PROBLEMS = 10


@dataclass
class TokenReport:
    """The result.

    Attributes:
        problems: what is wrong.
        consumed: tokens that the trainer consumed.
        logged: tokens that servers logged without a planted lie.
    """

    problems: list[str] = field(default_factory=list)
    consumed: int = 0
    logged: int = 0


@dataclass(frozen=True)
class Row:
    """One completion and where it was found."""

    where: str
    line: Line


def check_tokens_and_training(records: Records, options: StormOptions) -> TokenReport:
    """Compute everything again."""
    report = TokenReport()
    consumed, logged = list(_consumed(records)), list(_logged(records))
    report.consumed = sum(len(row.line["token_ids"]) for row in consumed)
    report.logged = sum(len(row.line["token_ids"]) for row in logged)
    by_version: dict[int, list[Row]] = defaultdict(list)
    for row in [*consumed, *logged]:
        for version in set(row.line["versions"]):
            by_version[version].append(row)
    report.problems += _order_problems(records)
    trainer = build_trainer(options, layout="archon:d1")
    saved = build_trainer(options, layout="archon:d1")
    digests: dict[int, str] = {}
    batches = {line["version"]: line["rows"] for line in of_kind(records.trainers[0], "batch")}
    for version in sorted({*by_version, *range(options.versions + 1)}):
        folder = records.weights(version)
        if not folder.is_dir():
            rows = by_version[version][:MOST_PROBLEMS]
            report.problems += [f"{row.where}: a token has version {version}, which has no weights" for row in rows]
            continue
        weights = _load(folder)
        digests[version] = digest_of(weights)
        saved.load(folder, "hf")
        report.problems += _token_problems(saved, version, by_version[version])
        report.problems += _weight_problems(trainer, version, weights)
        if version in batches:
            train_on(trainer, batches[version])
    report.problems += _held_problems(records, digests)
    return report


def _consumed(records: Records) -> Iterator[Row]:
    for line in records.trainers[0]:
        if line["kind"] == "batch":
            for number, row in enumerate(line["rows"]):
                yield Row(f"step {line['version']}, completion {number}", row)
        elif line["kind"] == "collected":
            yield Row(f"collected completion {line['prompt_ids']}", line)


def _logged(records: Records) -> Iterator[Row]:
    for incarnation, lines in records.servers.items():
        for line in of_kind(lines, "tokens"):
            if not line["lying"]:
                yield Row(f"server {incarnation[:8]}", line)


def _order_problems(records: Records) -> Iterator[str]:
    """A step's completions have its version, and no completion's versions go back."""
    for line in of_kind(records.trainers[0], "batch"):
        found = {version for row in line["rows"] for version in row["versions"]}
        if found - {line["version"]}:
            yield f"step {line['version']}: found tokens of versions {sorted(found)}"
    for row in _consumed(records):
        if list(row.line["versions"]) != sorted(row.line["versions"]):
            yield f"{row.where}: its versions go back: {row.line['versions']}"


def _held_problems(records: Records, digests: Mapping[int, str]) -> Iterator[str]:
    """Servers held exactly the trainer's weights whenever they switched."""
    for incarnation, lines in records.servers.items():
        for line in of_kind(lines, "committed"):
            if line["digest"] != digests.get(line["version"]):
                yield f"server {incarnation[:8]} switched to weights that are not those of version {line['version']}"


def _token_problems(engine, version: int, rows: Iterable[Row]) -> list[str]:
    rows = [row for row in rows if row.line["token_ids"]]
    if not rows:
        return []
    sequences = [[*row.line["prompt_ids"], *row.line["token_ids"]] for row in rows]
    values = engine.forward_batch(Batch.from_sequences(sequences), OutputRequest(("logprobs",)))["logprobs"].tolist()
    problems, start = [], 0
    for row, sequence in zip(rows, sequences, strict=True):
        first = start + len(row.line["prompt_ids"]) - 1
        start += len(sequence)
        for place, (found, label) in enumerate(zip(row.line["logprobs"], row.line["versions"], strict=True)):
            expected = values[first + place]
            if label == version and not abs(found - expected) <= TOKEN_TOLERANCE:
                problems.append(
                    f"{row.where}: token {place} is labelled {version} and has log-probability {found:.6f}; the "
                    f"weights of version {version} give {expected:.6f}"
                )
                break
    return problems[:MOST_PROBLEMS]


def _weight_problems(trainer, version: int, saved: Mapping[str, torch.Tensor]) -> list[str]:
    problems = []
    for bucket in trainer.weight_buckets(2**30):
        for name, replayed in bucket.tensors.items():
            difference = (saved[name] - replayed).abs().max() / max(1.0, float(replayed.abs().max()))
            if not difference <= WEIGHT_TOLERANCE:
                problems.append(f"weights of version {version}: {name} differs by {difference:.2g} from the replay")
    return problems[:1]


def _load(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
