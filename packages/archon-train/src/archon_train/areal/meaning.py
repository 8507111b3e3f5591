"""Translates the values of AReaL files that mean something else in Archon, and fills in AReaL's defaults."""

from __future__ import annotations

from archon_core.config.dialect import Translation
from archon_core.config.raw import RawMapping, RawNode, RawScalar, follow, prune, shown, walk
from archon_core.config.typed import Problem, knows
from archon_core.config.unknown_options import inlined
from archon_core.contracts.decisions import Decision
from archon_core.contracts.engine_config import ROLES
from archon_core.errors import ConfigError
from archon_train.areal.allocation_mode import allocation_mode_decision
from archon_train.areal.defaults import WITHOUT_SAMPLING, fill_in_defaults
from archon_train.areal.facts import facts
from archon_train.areal.keys import DATASET_REASONS, DATASETS, NULL_MEANS, NULL_SECTIONS, SECTIONS, fits
from archon_train.areal.megatron import translate_megatron
from archon_train.areal.profiling import translate_profiling
from archon_train.areal.raw_options import is_override, text_of, with_text
from archon_train.areal.removed_names import translate_removed
from archon_train.areal.rules import SCRIPT_REASON
from archon_train.areal.scheduling import translate_scheduling
from archon_train.areal.server_sections import take_unknown_server_options
from archon_train.areal.weight_updates import translate_weight_updates
from archon_train.vision import explain_visual

ADAM = {
    "adam": "AReaL's adam has decoupled weight decay: AdamW",
    "adam_bf16": "AdamW; its state has the type of archon.master_dtype",
}
"""AReaL's names of AdamW -> reason of the decision."""

REGISTRIES = {"nfs": "folder", "etcd3": "etcd"}
"""AReaL's names of registries -> Archon's."""

RECOVERY_MODES = {
    "auto": "trainer.auto_resume",
    "disabled": "",
    "fault": "trainer.auto_resume",
    "off": "",
    "on": "trainer.auto_resume",
    "resume": "trainer.resume",
}
"""Values of ``recover.mode`` -> the option that resumes a run. AReaL also restarts failed runs with ``auto_resume``."""


def is_areal(tree: RawMapping) -> bool:
    """Whether a file is in AReaL's format: it has a section or option that only AReaL has."""
    return not SECTIONS.isdisjoint(tree.entries)


def translate(tree: RawMapping) -> Translation:
    """Replace values that mean something else in Archon. ``tree`` has Archon's names and all overrides."""
    decisions: list[Decision] = []
    for step in (
        _refuse_images,
        _nulls,
        _scheduler,
        translate_scheduling,
        _name_resolve,
        _workflow,
        translate_megatron,
        _attention,
        _optimizers,
        _algorithm,
        _dynamic_sampling,
        _without_validation,
        _dataset,
        _saving,
        _recover,
        _allocation_mode,
        translate_profiling,
        translate_weight_updates,
    ):
        tree = step(tree, decisions)
    return Translation(tree, tuple(decisions))


def translate_deprecated(tree: RawMapping) -> Translation:
    """Translate a file in Archon's format, which may have these options of AReaL's as overrides."""
    decisions: list[Decision] = []
    tree = translate_weight_updates(_allocation_mode(tree, decisions), decisions)
    return Translation(tree, tuple(decisions))


def fill_in(tree: RawMapping, schema: type) -> Translation:
    """Fill in AReaL's defaults, translate removed names, and add what AReaL's code fills in for known data sets."""
    decisions: list[Decision] = []
    tree = fill_in_defaults(tree, schema, decisions)
    tree = translate_removed(tree, schema, decisions)
    path = text_of(tree, "data.path")
    unused = {
        "reward": text_of(tree, "algorithm") in WITHOUT_SAMPLING,
        "data.hf.validation_split": not _evaluates(tree),
    }
    for option, value in DATASETS.get(path, {}).items():
        if not unused.get(option, False) and tree.get(option) is None and knows(schema, option):
            tree = with_text(tree, option, value)
            reason = DATASET_REASONS.get(option, f"AReaL's choice for {path}")
            decisions.append(Decision(option, "left out", value, reason))
    tree, problems = take_unknown_server_options(tree, schema)
    return Translation(tree, tuple(decisions), problems)


def _evaluates(tree: RawMapping) -> bool:
    """Whether the file has held-out data."""
    return isinstance(tree.get("valid_dataset"), RawMapping) or tree.get("data.validation_path") is not None


def _refuse_images(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """Raise for visual models and data sets, before anything else of their files is judged."""
    models = {f"{role}.path": text_of(tree, f"{role}.path") for role in ROLES}
    datasets = {option: text_of(tree, option) for option in ("data.path", "data.validation_path")}
    problem = explain_visual(models.items(), datasets.items())
    if problem is None:
        return tree
    named = (tree.get(option) for option in (*models, *datasets) if option in problem)
    source = next((node.source for node in named if node is not None), "")
    raise ConfigError(str(Problem(source, problem)))


def _nulls(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    def is_null_section(path: str, node: RawNode) -> bool:
        is_null = isinstance(node, RawScalar) and node.is_null
        return is_null and any(fits(pattern, path) for pattern in NULL_SECTIONS)

    tree = prune(tree, is_null_section)
    for path, node in list(walk(tree)):
        for pattern, value in NULL_MEANS.items():
            if isinstance(node, RawScalar) and node.is_null and fits(pattern, path):
                tree = with_text(tree, path, value, node.source)
    return tree


def _scheduler(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    kind = tree.get("scheduler.type")
    if isinstance(kind, RawScalar) and kind.is_null:
        decisions.append(Decision("scheduler.type", "null", "local", "without a launcher, processes start here"))
        return with_text(tree, "scheduler.type", "local", kind.source)
    return tree


def _name_resolve(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    option = "cluster.name_resolve.type"
    kind = tree.get(option)
    if isinstance(kind, RawScalar) and kind.text in REGISTRIES:
        name = REGISTRIES[kind.text]
        decisions.append(Decision(option, kind.text, name, "Archon's name of the registry"))
        return with_text(tree, option, name, kind.source)
    return tree


def _workflow(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """Leave out the class that AReaL's scripts import; an override, and names without dots, are Archon's workflows."""
    _, node = follow(tree, "workflow")
    if not isinstance(node, RawScalar) or node.is_null or ":" in node.text or "." not in node.text or is_override(node):
        return tree
    decisions.append(Decision("workflow", shown(node), "no effect", SCRIPT_REASON))
    return inlined(prune(tree, lambda path, _: path == "workflow"), tree, {"workflow"})


def _attention(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """AReaL's default kernel needs CUDA; null chooses it there."""
    for role in ROLES:
        option = f"{role}.archon.attn_type"
        node = tree.get(option)
        if isinstance(node, RawScalar) and node.text == "varlen":
            decisions.append(Decision(option, "varlen", "null", "null chooses varlen on CUDA, and sdpa elsewhere"))
            tree = with_text(tree, option, "null", node.source)
    return tree


def _optimizers(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    for role in ROLES:
        option = f"{role}.optimizer.type"
        node = tree.get(option)
        if isinstance(node, RawScalar) and node.text in ADAM:
            decisions.append(Decision(option, node.text, "adamw", ADAM[node.text]))
            tree = with_text(tree, option, "adamw", node.source)
    return tree


def _algorithm(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    kind, critic = tree.get("train_dataset.type"), isinstance(tree.get("critic"), RawMapping)
    if tree.get("algorithm") is not None:
        return tree
    if not isinstance(kind, RawScalar):
        if not critic:
            return tree
        decisions.append(Decision("algorithm", "left out", "ppo", "there is a critic"))
        return with_text(tree, "algorithm", "ppo")
    name = {"rl": "ppo" if critic else "grpo"}.get(kind.text, kind.text)
    reason = f"train_dataset.type is {kind.text}" + (" and there is a critic" if critic and name == "ppo" else "")
    decisions.append(Decision("algorithm", "left out", name, reason))
    tree = prune(tree, lambda path, _: path in ("train_dataset.type", "valid_dataset.type"))
    return with_text(tree, "algorithm", name, kind.source)


def _dynamic_sampling(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    option = "actor.dynamic_sampling"
    if text_of(tree, option) == "true" and text_of(tree, "dynamic_bs") != "true":
        reason = "AReaL only leaves groups out, as dynamic_bs=true does"
        decisions.append(Decision(option, "true", "true, and further prompts fill the batch", reason))
    return tree


def _without_validation(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    """The override ``valid_dataset=null`` also removes what the file's ``valid_dataset`` was renamed to."""
    section = tree.get("valid_dataset")
    if not isinstance(section, RawScalar) or not section.is_null or not is_override(section):
        return tree
    moved = ("data.validation_path", "data.hf.validation_split")
    return prune(tree, lambda path, node: path in moved and not is_override(node))


def _dataset(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    path = text_of(tree, "data.path")
    if not path or tree.get("data.dataset") is not None:
        return tree
    name = "jsonl" if path.endswith((".jsonl", ".json")) else "hf"
    decisions.append(Decision("data.dataset", "left out", name, f"data.path is {path}"))
    tree = with_text(tree, "data.dataset", name)
    if path in DATASETS and text_of(tree, "data.validation_path") == path:
        split = DATASETS[path]["data.hf.validation_split"]
        decisions.append(Decision("data.validation_path", path, "null", f"its split {split} is held out"))
        tree = with_text(tree, "data.validation_path", "null")
    return tree


def _saving(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    target = "trainer.async_save"
    if text_of(tree, "saver.mode") != "async" or tree.get(target) is not None:
        return tree
    decisions.append(Decision("saver.mode", "async", f"{target}=true", "checkpoints are written in the background"))
    tree = prune(tree, lambda path, _: path == "saver.mode")
    return with_text(tree, target, "true")


def _recover(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    mode, steps = tree.get("recover.mode"), tree.get("recover.freq_steps")
    if isinstance(steps, RawScalar) and not steps.is_null and _is_zero(tree.get("trainer.save_every")):
        decisions.append(Decision("trainer.save_every", "0", shown(steps), "recover.freq_steps asks for checkpoints"))
        tree = with_text(tree, "trainer.save_every", steps.text, steps.source)
    _, value = follow(tree, "recover.mode")
    name = value.text if isinstance(value, RawScalar) else "disabled"
    if isinstance(mode, RawScalar):
        if name not in RECOVERY_MODES:
            allowed = ", ".join(RECOVERY_MODES)
            raise ConfigError(f"{mode.source}: recover.mode: found {shown(mode)}; allowed are {allowed}")
        option = RECOVERY_MODES[name]
        if option and tree.get(option) is None:
            tree = with_text(tree, option, "true", mode.source)
        tree = _without(tree, "recover.mode")
    return _restarts(tree, name, decisions)


def _restarts(tree: RawMapping, mode: str, decisions: list[Decision]) -> RawMapping:
    """``recover.retries`` as ``trainer.max_restarts``, in the modes in which AReaL starts a failed run again."""
    option, target = "recover.retries", "trainer.max_restarts"
    written, asked = tree.get(option), text_of(tree, option)
    if RECOVERY_MODES.get(mode) != "trainer.auto_resume":
        if written is not None and asked not in ("0", facts(option)[0].shown_default):
            decisions.append(Decision(option, asked, "no effect", f"recover.mode {mode} does not restart failed runs"))
    elif tree.get(target) is not None:
        if written is not None:
            decisions.append(Decision(option, asked, "no effect", f"{target} sets the number of restarts"))
    else:
        number = asked or facts(option)[0].shown_default
        reason = f"recover.mode {mode} restarts a run whose rank died; errors in the configuration or the data end it"
        decisions.append(Decision(option, asked or "left out", f"{target}={number}", reason))
        tree = with_text(tree, target, number, written.source if written is not None else "AReaL's default")
    return tree


def _allocation_mode(tree: RawMapping, decisions: list[Decision]) -> RawMapping:
    node = tree.get("allocation_mode")
    if not isinstance(node, RawScalar):
        return tree
    if node.text:
        decisions.append(allocation_mode_decision(node.text))
    return _without(tree, "allocation_mode")


def _is_zero(node: RawNode | None) -> bool:
    return node is None or (isinstance(node, RawScalar) and node.text == "0")


def _without(tree: RawMapping, option: str) -> RawMapping:
    return prune(tree, lambda path, _: path == option)
