"""Freed memory stays with the process, and the user's own settings win."""

from __future__ import annotations

import platform

import pytest

from archon_engine.freed_memory import VARIABLES, keep_freed_memory

OPTION = "actor.archon.keep_freed_memory"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_glibc_accepts_the_settings_which_are_a_decision() -> None:
    (decision,) = keep_freed_memory(OPTION, {})
    assert (decision.option, decision.requested) == (OPTION, "true")
    assert decision.effective == "M_TRIM_THRESHOLD=-1, M_MMAP_MAX=0"


@pytest.mark.parametrize("variable", VARIABLES)
def test_settings_of_the_user_stay(variable: str) -> None:
    (decision,) = keep_freed_memory(OPTION, {variable: "1"})
    assert decision.effective == "unchanged"
    assert variable in decision.reason
