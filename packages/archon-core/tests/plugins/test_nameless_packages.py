"""A plugin whose package has no name that pip knows: it works, and every advice about it can be followed."""

from __future__ import annotations

import pytest

from archon_core.errors import PluginError
from archon_core.installing import update_advice
from archon_core.plugins.discovery import discover

REWARD = """
@hookimpl
def archon_rewards():
    return [RewardSpec(name="{name}", target="{target}")]
"""

METADATA = {
    "no name": "Metadata-Version: 2.1\nVersion: 1.0\n",
    "an empty name": "Metadata-Version: 2.1\nName:\nVersion: 1.0\n",
    "the name that setuptools writes for none": "Metadata-Version: 2.1\nName: UNKNOWN\nVersion: 1.0\n",
    "a name that pip refuses": "Metadata-Version: 2.1\nName: my rewards; rm -rf\nVersion: 1.0\n",
    "an empty file": "",
    "no file": None,
}


def install_nameless(site, distribution, source, metadata, **options):
    """Install a plugin package, then spoil its metadata; return their folder."""
    site.install(distribution, source, **options)
    folder = site.path / f"{distribution.replace('-', '_')}-1.0.dist-info"
    if metadata is None:
        (folder / "METADATA").unlink()
    else:
        (folder / "METADATA").write_text(metadata)
    return folder


def advice(folder):
    return (
        f"its metadata, {folder}, give no package name that pip could look up; delete that folder and install the "
        "package again from its original source"
    )


@pytest.mark.parametrize("metadata", METADATA.values(), ids=METADATA)
def test_a_package_without_a_name_goes_by_the_folder_of_its_metadata(site, build, metadata):
    folder = install_nameless(site, "archon-lost", REWARD.format(name="lost", target="nowhere:lost"), metadata)
    registry = build()
    assert [plugin.distribution for plugin in registry.plugins] == ["archon-core", str(folder)]
    with pytest.raises(PluginError) as raised:
        registry.get("reward", "lost").load()
    assert str(raised.value).endswith(f"or update its package: {advice(folder)}")
    assert "pip install" not in str(raised.value)


def test_two_packages_without_names_are_two_plugins(site, build):
    for name in ("one", "two"):
        source = REWARD.format(name=name, target="json:loads")
        install_nameless(site, f"archon-{name}", source, METADATA["no name"])
    assert [spec.name for spec in build().all("reward")] == ["one", "two"]


@pytest.mark.parametrize(
    ("source", "header", "status"),
    [
        ("raise RuntimeError('bang')", "", "failed"),
        ("", "", "incompatible"),
        ("ARCHON_PLUGIN_API = 1", "", "incompatible"),
        ("ARCHON_PLUGIN_API = '0.9'", "", "incompatible"),
    ],
    ids=["does not import", "declares no API", "declares a number", "declares an old API"],
)
def test_a_broken_plugin_of_a_package_without_a_name_is_mended_by_hand(site, build, source, header, status):
    folder = install_nameless(site, "archon-lost", source, METADATA["no name"], header=header)
    [_, plugin] = build().plugins
    assert plugin.status == status
    assert advice(folder) in plugin.cause
    assert "pip install" not in plugin.cause


def test_unreadable_entry_points_of_a_package_without_a_name_are_mended_by_hand(site):
    entry_points = "[archon]\nno equals sign here\n"
    folder = install_nameless(site, "archon-lost", "", METADATA["no name"], entry_points=entry_points)
    [unreadable] = discover([str(site.path)]).unreadable
    assert unreadable.cause.endswith(f"reinstall it: {advice(folder)}")


def test_a_package_without_a_name_can_be_disabled_by_the_folder_of_its_metadata(site, build):
    folder = install_nameless(site, "archon-lost", REWARD.format(name="a", target="json:loads"), METADATA["no name"])
    assert [plugin.status for plugin in build(ARCHON_DISABLE_PLUGINS=str(folder)).plugins] == ["loaded", "disabled"]


@pytest.mark.parametrize("name", ["archon-rl", "archon_rl", "a", "zope.interface", "A1"])
def test_a_package_with_a_name_is_updated_by_pip(name):
    assert update_advice(name) == f"pip install --upgrade {name}"
