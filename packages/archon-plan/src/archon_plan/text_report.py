"""Prints an answer, or violated constraints, in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from archon_core.cli.console import print_hanging, print_remark, print_table, print_text
from archon_core.contracts.decisions import Decision
from archon_plan.alternatives import Alternatives
from archon_plan.answer import Answer, EngineAnswer, Refusal, Refused
from archon_plan.cost_report import print_memory, print_parts, print_time, print_traffic
from archon_plan.devices import Device
from archon_plan.engine_flags import as_flags, in_flags
from archon_plan.layout_report import print_layout
from archon_plan.numbers import count, gib
from archon_plan.planned_run import PlannedRun
from archon_plan.rl_report import print_rl


def print_answer(answer: Answer, run: PlannedRun) -> None:
    """Print every engine: layout, memory, traffic, time, decisions; then the run and assumptions."""
    for number, engine in enumerate(answer.engines):
        if number:
            print_text("")
        _print_engine(answer, engine)
    if run.plan is not None:
        print_text("")
        print_rl(run.plan, run.splits)
    if run.memory is not None:
        print_text("")
        print_parts("memory of a device while it samples", run.memory.parts, answer.device)
    notes = [*answer.request.notes, *run.notes, *(note for engine in answer.engines for note in engine.plan.notes)]
    notes += _about_device(answer.device)
    if answer.request.decisions:
        number = len(answer.request.decisions)
        command = f"archon train {answer.request.title} --dry-run"
        notes.append(f"{number} options of the file are changed or not used; `{command}` shows them")
    print_text("")
    for note in dict.fromkeys(notes):
        print_hanging(f"note: {note}", indent=6)


def _about_device(device: Device) -> list[str]:
    """A note about figures of a device that nobody has measured."""
    assumed = [name for name, _, source in device.rows() if source.startswith("assumed") and name != "kind"]
    if not assumed:
        return []
    return [
        f"assumed figures of {device.name}: {', '.join(assumed)}; --json has all with their sources, --set replaces "
        "them, --calibrate measures"
    ]


def _print_engine(answer: Answer, engine: EngineAnswer) -> None:
    plan, setting = engine.plan, engine.plan.setting
    print_text(Text.assemble((plan.role, "bold"), f"  {plan.request.layout}  {plan.request.model.name}"))
    active = ""
    if setting.anatomy.has_experts:
        active = f", {count(active_parameters(engine))} of them for each token"
    optimizer = f"{setting.optimizer}, checkpointing {_checkpointing(engine)}" if setting.trains else "not trained"
    print_text(
        f"{count(setting.anatomy.n_parameters)} parameters{active}; {plan.effective.compute_dtype}; {optimizer}\n"
    )
    print_layout(plan)
    print_text("")
    print_memory(answer, engine)
    print_text("")
    print_traffic(engine)
    print_text("")
    print_time(engine)
    if plan.decisions:
        print_text("")
        print_decisions(plan.decisions, role=plan.role, in_file=answer.request.config is not None)


def active_parameters(engine: EngineAnswer) -> int:
    """Parameters that one token's forward pass reads: of the routed experts, only ``top_k``."""
    anatomy = engine.plan.setting.anatomy
    total = anatomy.n_parameters
    for kind in anatomy.kind_of:
        layer = anatomy.kinds[kind]
        if layer.experts is not None:
            routed = sum(weight.size for weight in layer.weights if weight.role == "expert")
            total -= routed - routed * layer.experts.top_k // layer.experts.n_experts
    return total


def _checkpointing(engine: EngineAnswer) -> str:
    setting = engine.plan.setting
    if setting.checkpointing == "selective":
        return f"every {setting.every}. block" if setting.every else "selective by operation"
    return (
        f"to {setting.budget:g} of activations" if setting.checkpointing == "memory_budget" else setting.checkpointing
    )


def print_decisions(decisions: Sequence[Decision], *, role: str, in_file: bool) -> None:
    """Print what a run would change."""
    rows = []
    for decision in decisions:
        option = decision.option if in_file else in_flags(decision.option, role)
        reason = decision.reason if in_file else in_flags(decision.reason, role)
        rows.append((option, decision.requested, decision.effective, reason))
    print_table(("option", "asked", "used", "because"), rows)


def print_refused(refused: Refused) -> None:
    """Print all violated constraints to standard error, with the nearest layouts that work."""
    for refusal in refused.engines:
        in_file = refused.request.config is not None
        role, number = refusal.request.role, len(refusal.violations)
        print_remark(f"{role} {refusal.request.layout}", label=f"{number} violated: ", style="bold red")
        _print_violations(refusal, in_file=in_file)
        if refusal.nearest:
            print_remark(", ".join(refusal.nearest), label="nearest layouts that work: ", style="bold")
    for problem in refused.problems:
        print_remark(problem, label="error: ", style="bold red")


def _print_violations(refusal: Refusal, *, in_file: bool) -> None:
    role = refusal.request.role
    for violation in refusal.violations:
        shown = [f"found {violation.found}"]
        shown += [violation.marks] if violation.marks else []
        shown += [f"  allowed: {violation.allowed}"] if violation.allowed else []
        shown += [f"  fix: {violation.fix}"] if violation.fix else []
        text = f"{violation.option}: " + "\n".join(shown)
        print_remark(text if in_file else in_flags(text, role), label="- ")


def print_shortfall(answer: Answer, found: Alternatives) -> None:
    """Print what the fullest engine of an answer lacks, and what would fit in its place, to standard error."""
    engine = answer.fullest
    role, in_file = engine.plan.role, answer.request.config is not None
    needs, has = answer.peak(engine), answer.device.memory
    print_remark(
        f"{role} needs {gib(needs)} on its fullest rank, and {answer.device.name} has {gib(has)}: "
        f"{gib(needs - has)} are missing",
        label="does not fit: ",
        style="bold red",
    )
    tokens = engine.plan.request.config.mb_spec.max_tokens_per_mb
    if not in_file and tokens and f"{role}.mb_spec.max_tokens_per_mb" not in engine.plan.request.explicit:
        print_remark(
            f"micro-batches have {tokens:,} tokens by default; --tokens changes that, and --n-mbs their number",
            label="note: ",
        )
    for options in found.settings:
        text = " ".join(f"{role}.{option}={value}" for option, value in options.items())
        print_remark(text if in_file else " ".join(as_flags(options)), label="fits with ", style="bold")
    if found.layouts:
        print_remark(", ".join(found.layouts), label="fits on as many ranks: ", style="bold")
    if found.larger:
        print_remark(found.larger, label="fits on more ranks: ", style="bold")
    if not (found.settings or found.layouts or found.larger):
        print_remark("nothing near fits; search with more devices: --world N --search", label="")
