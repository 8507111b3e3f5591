"""A registry of the fake plugins alone, whatever is installed beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from archon_core.plugins import Registry, build_registry
from archon_core.plugins.discovery import discover

BuildRegistry = Callable[..., Registry]


@pytest.fixture
def build(site: Any) -> BuildRegistry:
    """Build a registry from what ``site`` holds; arguments are environment variables."""

    def build_from_site(**environment: str) -> Registry:
        variables: Mapping[str, str] = environment
        return build_registry(discover([str(site.path)]), variables)

    return build_from_site
