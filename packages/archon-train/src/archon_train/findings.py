"""Collects what stops a run: wrong options, missing packages, and what this machine lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from archon_core.config.packages import MissingPackage, missing_package
from archon_core.contracts.rollout import InferenceEngineSpec
from archon_core.contracts.spec import Spec
from archon_core.errors import ArchonError, PluginError
from archon_core.plugins.hints import package_for
from archon_core.plugins.inference_engines import find_inference_engine, missing_engine_packages
from archon_train.run_plan import Obstacle

if TYPE_CHECKING:
    from archon_core.plugins import Registry


class Findings:
    """The obstacles and missing packages of a run.

    Args:
        registry: the installed plugins.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.needs: dict[MissingPackage, list[str]] = {}
        self.obstacles: list[Obstacle] = []

    def look_up(self, kind: str, name: str, option: str) -> Spec | None:
        """The spec that ``option`` names; ``None`` after adding the reason why there is none."""
        try:
            if kind == InferenceEngineSpec.kind:
                return find_inference_engine(self.registry, name)
            return self.registry.get(kind, name)
        except PluginError as error:  # two plugins provide the name: no package is missing
            self.unable(f"{option}: {error}")
            return None
        except ArchonError as error:
            packages = missing_engine_packages(self.registry, name) if kind == InferenceEngineSpec.kind else ()
            if not packages and (package := package_for(kind, name)):
                packages = (package,)
            if not packages:
                self.wrong(f"{option}: {error}")
            for package in packages:
                self.need(missing_package(package, self.registry), f"{option}: {name}")
            return None

    def need(self, package: MissingPackage, purpose: str) -> None:
        """Add a missing package."""
        purposes = self.needs.setdefault(package, [])
        if purpose not in purposes:
            purposes.append(purpose)

    def wrong(self, text: str) -> None:
        """Add an error in the configuration."""
        self.obstacles.append(Obstacle(text, "config"))

    def unable(self, text: str) -> None:
        """Add something that this machine, or its installed packages, cannot run."""
        self.obstacles.append(Obstacle(text, "environment"))

    def ask(self, spec: Spec, part: str, *arguments: Any, option: str = "", **facts: Any) -> Any:
        """The answer of a function that ``spec`` names as ``part``; ``None`` after adding why it cannot be loaded.

        Args:
            option: dotted name of the option that chose ``spec``, for the message.
        """
        try:
            return spec.load_part(part)(*arguments, **facts)
        except PluginError as error:
            self.unable(f"{option}: {error}" if option else str(error))
            return None
