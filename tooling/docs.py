"""Writes the generated pages of docs/, or checks that the committed ones are current (``--check``)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from archon_core.config.raw import RawMapping
from archon_core.config.reference import render_reference
from archon_core.config.sections import choose_sections
from archon_core.plugins import TrainEngineSpec, registry
from archon_core.plugins.loader import PLUGIN_API_SINCE
from archon_engine.options.combinations import render_rules
from archon_train.experiment import ROOT as ROOT_SCHEMA
from compatibility_page import PATH as COMPATIBILITY
from compatibility_page import render_compatibility
from generated import algorithms, architecture, areal, engines, layouts, models, packages, pipelines, torchtitan
from generated.command_line import render_command_line
from generated.first_party import PATH as FIRST_PARTY
from generated.first_party import render_first_party
from generated.model_capabilities import render_capabilities, render_verified
from generated.performance import render_performance
from generated.plans import render_plans
from generated.plugin_kinds import render_plugin_kinds
from generated.publication import draw_publication
from generated.server_states import draw_server_states
from generated.weight_paths import draw_weight_paths
from release_bounds import read_constraints
from workspace import find_packages

ROOT = Path(__file__).resolve().parents[1]
BEGIN = "<!-- made from {source} by tooling/docs.py -->\n"
END = "<!-- end -->\n"


def is_ours(distribution: str) -> bool:
    """Whether a distribution belongs to this repository; others may be installed but are not documented."""
    return (ROOT / "packages" / distribution / "pyproject.toml").is_file()


def generated_pages() -> dict[Path, str]:
    """Path -> content of every generated page."""
    root = ROOT_SCHEMA.with_engines(registry().all(TrainEngineSpec))
    choice = choose_sections(registry(), RawMapping({}), root)
    if choice.failures:
        raise SystemExit("\n".join(choice.failures))
    sections = [section for section in (*choice.used, *choice.unused) if is_ours(section.owner)]
    tables = {
        "docs/engine-options.md": {"archon_engine.options.combinations": render_rules()},
        "docs/pipeline.md": {
            "archon_pipeline.schedules (bubble)": pipelines.render_bubbles(),
            "archon_pipeline.schedules (peak)": pipelines.render_peaks(),
            "archon_pipeline.schedules (split)": pipelines.render_splits(),
        },
        "docs/memory.md": {
            "archon_pipeline.schedules (warm-up)": pipelines.render_warm_up(),
            "archon_pipeline.schedules (by rank)": pipelines.render_peaks_by_rank(),
        },
        "docs/performance.md": render_performance(ROOT),
        "docs/plan.md": render_plans(ROOT),
        "docs/reference/packages.md": {"packages": packages.render_packages(ROOT)},
        "docs/layouts.md": {"archon_engine.models.capabilities": models.render_axes()},
        "docs/from-areal.md": {
            "archon_train.areal (renamed)": areal.render_renamed(),
            "ArchonOptions": areal.render_engine_options(),
            "archon_train.areal (defaults)": areal.render_defaults(),
            "archon_train.areal (null)": areal.render_null(),
            "archon_train.areal (data sets)": areal.render_datasets(),
            "archon_train.areal (refused)": areal.render_refused(),
            "archon_train.areal (without effect)": areal.render_without_effect(),
            "archon_train.areal (megatron)": areal.render_megatron(),
            "archon_train.areal (scripts)": areal.render_scripts(),
            "tests/data/areal_files.tsv": areal.render_files(),
        },
        "docs/algorithms.md": {
            "the specs of policy losses": algorithms.render_losses(is_ours),
            "archon_rl.named_settings": algorithms.render_presets(),
        },
        "docs/from-areal-fsdp.md": {"archon_train.areal (fsdp)": areal.render_fsdp_renamed()},
        "docs/from-torchtitan.md": {"generated.torchtitan": torchtitan.render_torchtitan()},
        "docs/models.md": {
            "the specs of models": models.render_models(is_ours),
            "the models' declarations and parts": render_capabilities(is_ours),
            "tooling/generated/verified.json": render_verified(ROOT, is_ours),
        },
        "docs/reference/engines.md": {
            "archon_core.layout.backends": engines.render_backends(is_ours),
            "the specs of engines": engines.render_engines(is_ours),
        },
    }
    drawings = pipelines.pictures() | layouts.pictures() | architecture.pictures(ROOT)
    drawings |= {"publication.svg": draw_publication(), "server-states.svg": draw_server_states()}
    drawings |= {"weight-paths.svg": draw_weight_paths()}
    tested = read_constraints((ROOT / "constraints/tested.txt").read_text(encoding="utf-8"))
    return {
        ROOT / "docs/reference/options.md": render_reference(ROOT_SCHEMA.schema, sections),
        ROOT / FIRST_PARTY: render_first_party(is_ours, sections, ROOT_SCHEMA.schema),
        ROOT / COMPATIBILITY: render_compatibility(find_packages(), PLUGIN_API_SINCE, tested),
        ROOT / "docs/reference/areal.md": areal.render_options(),
        ROOT / "docs/reference/cli.md": render_command_line(is_ours),
        ROOT / "docs/reference/plugins.md": render_plugin_kinds(is_ours),
        **{ROOT / page: with_tables(ROOT / page, by_source) for page, by_source in tables.items()},
        **{ROOT / "docs/images" / name: drawn for name, drawn in drawings.items()},
    }


def with_tables(path: Path, tables: Mapping[str, str]) -> str:
    """The page with each table between its two marks."""
    page = path.read_text(encoding="utf-8")
    for source, table in tables.items():
        begin = BEGIN.format(source=source)
        if page.count(begin) != 1:
            raise SystemExit(
                f"{path.relative_to(ROOT)}: found {page.count(begin)} times, allowed once: {begin.strip()}"
            )
        before, rest = page.split(begin)
        _, after = rest.split(END, maxsplit=1)
        page = f"{before}{begin}{table}{END}{after}"
    return page


def main() -> int:
    """Write the pages; with ``--check``, return 1 if a page is outdated."""
    stale = 0
    for path, content in generated_pages().items():
        current = path.read_text(encoding="utf-8") if path.is_file() else None
        if current == content:
            continue
        if "--check" in sys.argv[1:]:
            print(f"{path.relative_to(ROOT)} is not current; run: python tooling/docs.py", file=sys.stderr)
            stale = 1
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
