from dataclasses import replace

import pytest

from archon_core import parse_layout
from archon_core.errors import LayoutError, ModelError
from archon_core.plugins import ModelSpec
from archon_engine.models.capabilities import check_capabilities

DENSE = ModelSpec(name="dense", target="house:Dense", capabilities=frozenset({"tp", "tied"}))


@pytest.mark.parametrize("layout", ["d8", "r2d2", "d2t2", "t8"])
def test_axes_that_a_model_declares_are_allowed_and_so_are_data_axes(layout):
    check_capabilities(DENSE, parse_layout(f"archon:{layout}"), critic=False, role="actor")


@pytest.mark.parametrize(
    ("layout", "found", "missing"), [("d2c2", "c2", "cp"), ("t2p4", "p4", "pp"), ("d2e2", "e2", "ep")]
)
def test_an_axis_that_a_model_does_not_declare_is_refused_by_name(layout, found, missing):
    with pytest.raises(LayoutError) as refused:
        check_capabilities(DENSE, parse_layout(f"archon:{layout}"), critic=False, role="ref")
    assert f"ref.backend 'archon:{layout}': found {found}; model 'dense'" in str(refused.value)
    assert f"does not support {missing} (it supports tied, tp)" in str(refused.value)


def test_a_critic_needs_a_model_with_a_value_head():
    with pytest.raises(ModelError, match=r"critic\.is_critic: found true; model 'dense' has no value head"):
        check_capabilities(DENSE, parse_layout("archon:d1"), critic=True, role="critic")


def test_shared_prefixes_need_a_model_that_declares_them():
    layout = parse_layout("archon:d1")
    with pytest.raises(ModelError, match=r"actor\.enable_tree_training: found true; model 'dense' cannot continue"):
        check_capabilities(DENSE, layout, critic=False, shares_prefixes=True, role="actor")
    able = replace(DENSE, capabilities=frozenset({"tree"}))
    check_capabilities(able, layout, critic=False, shares_prefixes=True, role="actor")
