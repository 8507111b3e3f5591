"""Host lists of SLURM."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archon_core.errors import ConfigError
from archon_core.ranks.host_list import expand_hosts


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n1,n2", ["n1", "n2"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("gpu-[08-10,20].x", ["gpu-08.x", "gpu-09.x", "gpu-10.x", "gpu-20.x"]),
        ("r[1-2]n[1-2],login", ["r1n1", "r1n2", "r2n1", "r2n2", "login"]),
        ("n[007]", ["n007"]),
    ],
)
def test_a_list_has_its_hosts_in_order(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["n[1-", "n[]", "n[a-b]", "n[3-1]", "n1,,n2", "n]1[", "n[[1]]", "n[1-99999999]"])
def test_a_malformed_list_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="host list"):
        expand_hosts(text)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=20), st.integers(1, 4))
def test_expansion_undoes_bracketing(numbers: list[int], width: int) -> None:
    names = [f"{number:0{width}d}" for number in numbers]
    assert expand_hosts(f"n[{','.join(names)}]") == [f"n{name}" for name in names]
