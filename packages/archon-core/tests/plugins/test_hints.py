"""The tables of first-party names, and the suggestions made from them."""

from __future__ import annotations

import pytest

from archon_core.plugins import registry
from archon_core.plugins.discovery import normalise
from archon_core.plugins.first_party import PACKAGES
from archon_core.plugins.hints import nearest, package_for, package_for_option
from archon_core.plugins.registry import KINDS


def test_the_tables_speak_of_kinds_that_exist_and_give_each_name_one_package():
    assert set(PACKAGES) <= set(KINDS)
    for packages in PACKAGES.values():
        names = [name for of_package in packages.values() for name in of_package]
        assert len(names) == len(set(names))


def test_no_installed_package_provides_a_name_that_the_tables_give_to_another():
    wrong = [
        f"{spec.kind} {spec.name}: {plugin.distribution}"
        for plugin in registry().plugins
        for spec in plugin.specs
        if package_for(spec.kind, spec.name) not in (None, normalise(plugin.distribution))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("path", "package"),
    [
        ("sglang", "archon-sglang"),
        ("sglang.mem_fraction_static", "archon-sglang"),
        ("actor.eps_clip", "archon-rl"),
        ("actor.eps_clipping", None),
        ("actor", None),
        ("actor.reward_norm.mean_level", "archon-rl"),
        ("data.arithmetic.max_operand", "archon-rl"),
        ("actor.archon.ac_mode", "archon-engine"),
        ("actor.archon.moe_aux_loss", "archon-moe"),
    ],
)
def test_an_option_belongs_to_the_package_that_brings_its_section(path, package):
    assert package_for_option(path) == package


def test_the_nearest_name_ignores_case_and_is_given_as_it_is_written():
    assert nearest("izb", ["IZB", "ZBV"]) == "IZB"
    assert nearest("spiral", ["IZB", "ZBV"]) is None
