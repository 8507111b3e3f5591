"""What the engine looks for on modules by name is declared in one place, ``archon_core.contracts.module``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from archon_core.contracts import module as contract

PACKAGES = Path(__file__).parents[1] / "packages"
READERS = ("archon-engine", "archon-moe", "archon-pipeline", "archon-rollout")
"""Packages that receive modules which others wrote."""

NOT_MODULES = {
    "ctypes.CDLL(None)",
    "config",
    "config.archon",
    "error",
    "getattr(config, 'archon', None)",
    "functional",
    "functional_collectives",
    "mmap",
    "node.target",
    "operation",
    "options",
    "parameter",
    "record",
    "root._get_fsdp_state()._comm_ctx",
    "saved",
    "sharded",
    "state",
    "tokenizer",
    "torch",
    "trainer",
    "running.assembled.plan.hf_config",
    "self.builder",
}
"""What else attributes are looked up on by name: configurations, tokenizers, torch's own objects."""


def lookups(source: Path) -> Iterator[tuple[str, str]]:
    """Receiver and attribute of every ``getattr`` and ``hasattr`` with a name that the source spells out."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            receiver, attribute = node.args[:2]
            if isinstance(attribute, ast.Constant):
                yield ast.unparse(receiver), attribute.value


def test_the_engine_looks_for_no_attribute_of_a_module_that_the_contract_does_not_declare() -> None:
    found = [
        f"{source.relative_to(PACKAGES)}: {receiver}.{attribute}"
        for package in READERS
        for source in sorted((PACKAGES / package / "src").rglob("*.py"))
        for receiver, attribute in lookups(source)
        if receiver not in NOT_MODULES
    ]
    assert found == [], "read these through archon_core.contracts.module, or add what they are read from to NOT_MODULES"


def test_the_table_of_the_contract_names_what_it_declares() -> None:
    read = {attribute for _, attribute in lookups(Path(contract.__file__))}
    protocols = (contract.TensorParallelLayer, contract.RowProjection, contract.FillsBuffers)
    declared = {
        name
        for protocol in protocols
        for name in (*protocol.__annotations__, *vars(protocol))
        if not name.startswith("_")
    }
    rows = [line.split("``")[1] for line in contract.__doc__.splitlines() if line.startswith("| ``")]
    assert sorted(rows) == sorted(read | declared)
