"""``archon doctor``: what it finds, what it advises, and its exit code."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from archon_core.cli.doctor import examine_plugins, examine_versions, installed_version
from archon_core.plugins import Registry
from archon_core.plugins.discovery import discover
from archon_core.plugins.loader import load_core
from archon_core.plugins.status import PluginStatus
from archon_core.tested_versions import TESTED_VERSIONS

CONSTRAINTS = Path(__file__).parents[4] / "constraints" / "tested.txt"

WORKSPACE_TOOLS = {
    "editables",
    "hatchling",
    "hypothesis",
    "import-linter",
    "openai",
    "packaging",
    "pydantic",
    "pytest",
    "pytest-xdist",
    "ruff",
    "smolagents",
    "twine",
}
"""What the constraints name for contributors only."""
SITE_TOOLS = {"Markdown", "mkdocs", "mkdocs-material", "pymdown-extensions"}
"""The same for the documentation site."""


@pytest.mark.skipif(not CONSTRAINTS.exists(), reason="only the repository has constraints/tested.txt")
def test_the_versions_that_a_wheel_carries_are_those_of_the_repository():
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    tools = WORKSPACE_TOOLS | SITE_TOOLS
    assert {name: version for name, version in pinned.items() if name not in tools} == dict(TESTED_VERSIONS)


def test_a_version_that_differs_gets_the_command_that_installs_the_tested_one():
    installed = {"torch": "2.12.1", "rich": "15.0.0"}
    findings = list(examine_versions({"torch": "2.13.0", "rich": "15.0.0", "datasets": "5.2.0"}, installed.get))
    assert [(finding.subject, finding.state) for finding in findings] == [("torch", "note")]
    assert "2.12.1, tested with 2.13.0" in findings[0].found
    assert findings[0].advice == 'pip install "torch==2.13.0"'


def test_a_build_of_the_tested_version_is_no_difference():
    findings = list(examine_versions({"torch": "2.13.0"}, {"torch": "2.13.0+cu130"}.get))
    assert [finding.state for finding in findings] == ["ok"]


def test_a_distribution_that_is_not_installed_has_no_version():
    assert installed_version("a-distribution-that-is-not-there") is None
    assert installed_version("pluggy") is not None


def test_failed_and_incompatible_plugins_are_failures_and_disabled_ones_are_not():
    plugins = [
        load_core(),
        PluginStatus("a", "archon-a", "1", "a", status="failed", cause="it raised"),
        PluginStatus("b", "archon-b", "1", "b", status="incompatible", cause="too new"),
        PluginStatus("c", "archon-c", "1", "c", status="disabled", cause="by request"),
        PluginStatus("d", "archon-d", "1", "d", problems=("misspelt",)),
    ]
    findings = list(examine_plugins(Registry(plugins)))
    states = {finding.subject: (finding.state, finding.advice) for finding in findings}
    assert states == {
        "plugin a": ("failure", "it raised"),
        "plugin b": ("failure", "too new"),
        "plugin c": ("note", "by request"),
        "plugin d": ("failure", "misspelt"),
        "plugins": ("ok", ""),
    }


def test_doctor_reports_everything_and_fails_when_a_plugin_does_even_in_strict_mode(archon, site, monkeypatch):
    site.install("archon-broken", "raise RuntimeError('no such accelerator')")
    monkeypatch.setenv("ARCHON_STRICT_PLUGINS", "1")
    outcome = archon("doctor", "--json")
    assert outcome.code == 1
    findings = {finding["subject"]: finding for finding in json.loads(outcome.out)}
    assert {"Python", "archon-core", "host", "torch", "collectives", "plugins"} <= set(findings)
    assert "no such accelerator" in findings["plugin broken"]["advice"]


def test_a_long_finding_wraps_between_words_below_its_first_line(archon, site, only_fakes, monkeypatch):
    names = [f"plugin-{number}" for number in range(12)]
    for name in names:
        site.install(f"archon-{name}", "")
    monkeypatch.setenv("COLUMNS", "80")
    lines = archon("doctor").out.splitlines()
    begins = next(number for number, line in enumerate(lines) if "loaded: " in line)
    listed = lines[begins : begins + 3]
    assert max(map(len, listed)) <= 80
    assert [line.index("plugin-") for line in listed[1:]] == [lines[begins].index("loaded: ")] * 2
    assert all(name in "".join(listed) for name in names)


@pytest.fixture
def only_fakes(monkeypatch, site):
    """Nothing is installed but core and what is in ``site``."""
    monkeypatch.setattr("archon_core.cli.doctor.discover", lambda: discover([str(site.path)]))


@pytest.fixture
def without_torch(monkeypatch):
    """``import torch`` fails as if it were not installed."""
    monkeypatch.setitem(sys.modules, "torch", None)


def require(site, distribution, *requirements):
    metadata = next(site.path.glob(f"{distribution.replace('-', '_')}-*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + "".join(f"Requires-Dist: {text}\n" for text in requirements))


def test_doctor_fails_without_torch_when_an_installed_package_needs_it(archon, site, only_fakes, without_torch):
    site.install("archon-trainer", "")
    require(site, "archon-trainer", "rich", "torch>=2.11")
    outcome = archon("doctor")
    assert outcome.code == 1
    assert re.search(r"failure torch +does not import: ModuleNotFoundError", outcome.out)
    assert 'pip install "torch>=2.11" (for archon-trainer)' in outcome.out


def test_a_missing_torch_is_a_note_when_nothing_needs_it(archon, site, only_fakes, without_torch):
    site.install("archon-light", "")
    require(site, "archon-light", "torchmetrics", 'torch>=2.11; extra == "tensors"')
    outcome = archon("doctor")
    assert outcome.code == 0
    assert re.search(r"note    torch +not installed; no installed package needs it", outcome.out)
    assert "for training: pip install archon-train" in outcome.out


def test_a_torch_that_is_damaged_is_a_failure_even_if_nothing_needs_it(archon, site, only_fakes, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    (site.path / "torch.py").write_text("raise OSError('libtorch.so: cannot open')")
    outcome = archon("doctor")
    assert outcome.code == 1
    assert re.search(r"failure torch +does not import: OSError: libtorch.so", outcome.out)
