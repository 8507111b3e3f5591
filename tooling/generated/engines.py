"""Tables of docs/reference/engines.md: backends of layouts, and a comparison of engines.

Facts about Archon's engines come from their specs; facts about others from their documentation, with its address.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from archon_core.layout import BUILTIN_BACKENDS, backend_table
from archon_core.layout.axes import AXIS_NAMES
from archon_core.plugins import ModelSpec, ScheduleSpec, TrainEngineSpec, registry
from archon_core.plugins.hints import package_for
from archon_core.plugins.inference_engines import inference_engines
from archon_engine.options.archon import ArchonOptions
from generated.tables import code, codes, table

AREAL = "https://inclusionai.github.io/AReaL/tutorial/archon.html"

THEIRS: Mapping[str, tuple[str, str, str]] = {
    "models": ("any Hugging Face model", "Megatron models", "built-in and user-defined"),
    "torch.compile": ("limited", "no", "yes, by default"),
    "data parallel": ("FSDP2", "Megatron DP", "FSDP2"),
    "tensor parallel": ("PyTorch DTensor", "Megatron TP", "PyTorch DTensor"),
    "pipeline parallel": ("no", "yes (VPP)", "1F1B, I1F1B, IZB, ZBV"),
    "expert parallel": ("no", "full EP and ETP", "full EP and ETP"),
    "context parallel": ("Ulysses SP", "Megatron CP", "Ulysses SP"),
    "status": ("production", "production", "experimental"),
}
"""AReaL's FSDPEngine, MegatronEngine and ArchonEngine, as the table "Engine Comparison" of ``AREAL`` has them."""


def render_backends(is_ours: Callable[[str], bool]) -> str:
    """The backends that a layout can name."""
    training = [spec for spec in registry().all(TrainEngineSpec) if is_ours(spec.origin or "archon-core")]
    inference = [spec for spec in inference_engines(registry()) if is_ours(spec.origin)]
    known = {spec.name: spec for spec in (*training, *inference)}
    rows = []
    for name, backend in sorted(backend_table(training, inference).items(), key=lambda row: (row[1].kind, row[0])):
        spec = known.get(name)
        kind = "train_engine" if backend.kind == "train" else "inference_engine"
        if spec is not None:
            runs = spec.axes if isinstance(spec, TrainEngineSpec) else spec.letters
            package = f"{spec.origin or 'archon-core'}"
            state = " ".join(code(letter) for letter in AXIS_NAMES if letter in runs) or "the trainer's own ranks"
        else:
            package = "none; a plugin may provide it" if package_for(kind, name) is None else "not in this version"
            state = "parsed, not run"
        what = "training" if backend.kind == "train" else "inference"
        letters = " ".join(code(letter) for letter in AXIS_NAMES if letter in backend.letters) or "none"
        hybrid = "yes" if backend.hybrid else "no"
        rows.append([code(f"{name}:" if backend.letters else name), what, letters, hybrid, state, package])
    return table(["backend", "for", "letters", "hybrid", "runs in this version", "package"], rows)


def render_engines(is_ours: Callable[[str], bool]) -> str:
    """Archon's engine beside AReaL's three."""
    ours = _ours(is_ours)
    assert ours.keys() == THEIRS.keys(), "each row has all four"
    rows = [[feature, ours[feature], *others] for feature, others in THEIRS.items()]
    columns = ["", "Archon, `archon:`", "AReaL FSDPEngine", "AReaL MegatronEngine", "AReaL ArchonEngine"]
    return table(columns, rows)


def _ours(is_ours: Callable[[str], bool]) -> dict[str, str]:
    spec = registry().get(TrainEngineSpec, "archon")
    models = [model.name for model in registry().all(ModelSpec) if is_ours(model.origin)]
    schedules = [schedule.name for schedule in registry().all(ScheduleSpec) if is_ours(schedule.origin)]

    def if_runs(letter: str, text: str) -> str:
        return text if letter in spec.axes else "no"

    assert ArchonOptions().enable_compile, "the table says that it is the default"
    assert BUILTIN_BACKENDS["archon"].hybrid, "the table says that ep and etp are free"
    return {
        "models": f"{codes(models)}, and packages of your own",
        "torch.compile": "yes, by default on GPUs",
        "data parallel": if_runs("d", "FSDP2") + if_runs("r", ", HSDP").removeprefix("no"),
        "tensor parallel": if_runs("t", "DTensor parameters, plain tensors in between"),
        "pipeline parallel": if_runs("p", codes(schedules)),
        "expert parallel": if_runs("e", "any ep x etp that divides d x c x t"),
        "context parallel": if_runs("c", "Ulysses, gathered keys, both"),
        "status": "alpha; measured on CPUs only",
    }
