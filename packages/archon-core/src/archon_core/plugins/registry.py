"""The registry of installed specs, by kind and name. A failed lookup raises an error that says what to do.

A name that two plugins provide belongs to neither: looking it up raises, and everything else keeps working.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, cast, overload

from archon_core.contracts.model import ModelSpec
from archon_core.contracts.spec import Spec
from archon_core.contracts.train import AlgorithmSpec
from archon_core.errors import PluginError, UnknownNameError, did_you_mean
from archon_core.plugins.clashes import Claims, clashes_of, collect_claims, explain_clash
from archon_core.plugins.discovery import Discovery, discover, distribution_name, normalise
from archon_core.plugins.hints import alternatives, explain_unknown, label
from archon_core.plugins.kinds import SPEC_TYPES
from archon_core.plugins.loader import check_spec, load_core, load_plugin
from archon_core.plugins.status import IN_PROCESS, PluginStatus

AnySpec = TypeVar("AnySpec", bound=Spec)

KINDS: Mapping[str, type[Spec]] = {spec_type.kind: spec_type for spec_type in SPEC_TYPES}


class Registry:
    """Specs of core, of the loaded plugins, and specs added in process.

    Attributes:
        problems: errors in the plugins' settings, such as a disabled name that no plugin has.
    """

    def __init__(self, plugins: Sequence[PluginStatus], *, problems: Sequence[str] = ()) -> None:
        self.problems: tuple[str, ...] = tuple(problems)
        self._installed = tuple(plugins)
        self._in_process = PluginStatus(IN_PROCESS, IN_PROCESS, "", "")
        self._claims: Claims = collect_claims(self._installed)

    @property
    def plugins(self) -> list[PluginStatus]:
        """Core, then installed plugins, then specs added in process; name clashes are among their problems."""
        everyone = [*self._installed, *([self._in_process] if self._in_process.specs else [])]
        return [replace(plugin, problems=(*plugin.problems, *clashes_of(plugin, self._claims))) for plugin in everyone]

    @overload
    def get(self, kind: type[AnySpec], name: str) -> AnySpec: ...
    @overload
    def get(self, kind: str, name: str) -> Spec: ...
    def get(self, kind: str | type[Spec], name: str) -> Spec:
        """The spec of this kind with this name or alias.

        Args:
            kind: a spec class or its ``kind``: ``ScheduleSpec`` or ``"schedule"``.
            name: name or alias.

        Raises:
            UnknownNameError: no plugin provides the name. The message names the package to install, the plugin that
                failed, or the nearest name.
            PluginError: more than one plugin provides the name.
        """
        kind = _kind(kind)
        claims = self._claims.get((kind, name), ())
        if not claims:
            known = self.all(kind)
            raise UnknownNameError(
                explain_unknown(
                    kind,
                    name,
                    listed=[spec.name for spec in known],
                    aliases=[alias for spec in known for alias in spec.aliases],
                    plugins=self._installed,
                    advice=_advice(known, name),
                )
            )
        if len(claims) > 1:
            raise PluginError(explain_clash(kind, name, claims))
        return next(spec for spec in claims[0].specs if spec.kind == kind and name in (spec.name, *spec.aliases))

    @overload
    def all(self, kind: type[AnySpec]) -> list[AnySpec]: ...
    @overload
    def all(self, kind: str) -> list[Spec]: ...
    def all(self, kind: str | type[Spec]) -> list[Spec]:
        """All specs of a kind, core's first, except those with clashing names."""
        kind = _kind(kind)
        return [
            spec
            for plugin in (*self._installed, self._in_process)
            for spec in plugin.specs
            if spec.kind == kind and len(self._claims[kind, spec.name]) == 1
        ]

    def model_for(self, model_type: str, name: str | None = None) -> ModelSpec:
        """The model spec for a checkpoint.

        Args:
            model_type: of the checkpoint's Hugging Face config.
            name: ``actor.archon.model``: the spec to use; ``None`` for the one that serves ``model_type``. A spec
                that declares no model types is only ever chosen by its name, and then takes any.

        Raises:
            UnknownNameError: nothing serves ``model_type``, or ``name`` is unknown or does not serve it.
            PluginError: more than one plugin serves it and ``name`` does not say which.
        """
        if name is not None:
            chosen = self.get(ModelSpec, name)
            if chosen.model_types and model_type not in chosen.model_types:
                raise UnknownNameError(
                    f"model {chosen.name!r} of {self.origin(chosen)} serves the model types "
                    f"{', '.join(chosen.model_types)}, not {model_type!r}; leave actor.archon.model out to have it "
                    "chosen by model type, or name a model that serves it (archon models lists them)"
                )
            return chosen
        serving = [
            spec
            for plugin in (*self._installed, self._in_process)
            for spec in plugin.specs
            if isinstance(spec, ModelSpec) and model_type in spec.model_types
        ]
        if len({spec.name for spec in serving}) > 1:
            choices = ", ".join(f"{spec.name} ({self.origin(spec)})" for spec in serving)
            raise PluginError(
                f"model type {model_type!r} is served by {choices}; choose one with "
                f"actor.archon.model={serving[0].name}, or disable the plugin of the other"
            )
        if serving:
            return self.get(ModelSpec, serving[0].name)
        raise UnknownNameError(self._explain_unserved(model_type))

    def add(self, spec: Spec) -> None:
        """Register a spec for this process, as in a notebook. Adding an equal spec again has no effect.

        Raises:
            PluginError: the spec is malformed, or its name or an alias is taken.
        """
        if not isinstance(spec, tuple(KINDS.values())):
            raise PluginError(f"found {spec!r}; add a spec, such as RewardSpec(name=..., target='module:function')")
        try:
            check_spec(spec)
        except ValueError as error:
            raise PluginError(str(error)) from error
        if spec in self._in_process.specs:
            return
        for name in (spec.name, *spec.aliases):
            if taken := self._claims.get((spec.kind, name)):
                raise PluginError(explain_clash(spec.kind, name, [*taken, self._in_process]))
        self._replace_in_process((*self._in_process.specs, replace(spec, origin="")))

    def remove(self, kind: str | type[Spec], name: str) -> None:
        """Remove a spec that ``add`` registered.

        Raises:
            UnknownNameError: no spec of this name was added in process.
        """
        kind = _kind(kind)
        rest = tuple(spec for spec in self._in_process.specs if (spec.kind, spec.name) != (kind, name))
        if len(rest) == len(self._in_process.specs):
            added = [spec.name for spec in rest if spec.kind == kind]
            raise UnknownNameError(
                f"{label(kind)} {name!r} was not added in this process{did_you_mean(name, added)}; "
                "to disable a plugin, use ARCHON_DISABLE_PLUGINS"
            )
        self._replace_in_process(rest)

    def origin(self, spec: Spec) -> str:
        """The distribution that provides a spec, or ``this process``."""
        return spec.origin or IN_PROCESS

    def _replace_in_process(self, specs: tuple[Spec, ...]) -> None:
        self._in_process = replace(self._in_process, specs=specs)
        self._claims = collect_claims((*self._installed, self._in_process))

    def _explain_unserved(self, model_type: str) -> str:
        served = sorted({served for spec in self.all(ModelSpec) for served in spec.model_types})
        reason = explain_unknown("model", model_type, listed=served, plugins=self._installed, noun="model type")
        return f"{reason}\n{alternatives(model_type, self._installed)}"


def build_registry(discovery: Discovery, environment: Mapping[str, str]) -> Registry:
    """Load the discovered plugins, according to ``ARCHON_DISABLE_PLUGINS`` and ``ARCHON_STRICT_PLUGINS``.

    Raises:
        PluginError: a setting is malformed; or in strict mode, a plugin failed, is incompatible, or has a problem.
    """
    strict = _is_strict(environment)
    disabled = {normalise(name) for name in environment.get("ARCHON_DISABLE_PLUGINS", "").split(",") if name.strip()}
    plugins = [load_core()]
    names: set[str] = set()
    installed: list[str] = []
    for entry_point in discovery.entry_points:
        own = {normalise(entry_point.name), normalise(distribution_name(entry_point))}
        names |= own
        installed.append(entry_point.name)
        plugins.append(load_plugin(entry_point, disabled=bool(disabled & (own | {"all"}))))
    for unreadable in discovery.unreadable:
        names.add(normalise(unreadable.name))
        installed.append(unreadable.name)
        ignored = disabled & {normalise(unreadable.name), "all"}
        plugins.append(replace(unreadable, status="disabled") if ignored else unreadable)
    problems = [
        f"ARCHON_DISABLE_PLUGINS: found {name!r}, which disables nothing; allowed are "
        f"{', '.join(dict.fromkeys(['all', *installed]))}; correct or remove the name"
        f"{did_you_mean(name, sorted(names))}"
        for name in sorted(disabled - names - {"all"})
    ]
    registry = Registry(plugins, problems=problems)
    if strict:
        _raise_first_problem(registry)
    return registry


@functools.cache
def registry() -> Registry:
    """The registry of this process, built at the first call. ``registry.cache_clear()`` resets it."""
    return build_registry(discover(), os.environ)


def _advice(known: Sequence[Spec], name: str) -> str:
    """What the first of the known algorithms that recognises an unknown name says about it."""
    for spec in known:
        if isinstance(spec, AlgorithmSpec) and spec.explain:
            try:
                advice = str(spec.load_part("explain")(name))
            except PluginError as error:
                advice = str(error)  # beside the error about the name, not in its place
            if advice:
                return advice
    return ""


def _is_strict(environment: Mapping[str, str]) -> bool:
    value = environment.get("ARCHON_STRICT_PLUGINS", "").strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("", "0", "false", "no", "off"):
        return False
    raise PluginError(f"ARCHON_STRICT_PLUGINS: found {value!r}; allowed are 1 and 0; set one of them")


def _raise_first_problem(registry: Registry) -> None:
    for plugin in registry.plugins:
        if plugin.status in ("failed", "incompatible"):
            raise PluginError(f"plugin {plugin.name!r} of {plugin}: {plugin.cause}") from plugin.error
        if plugin.problems:
            raise PluginError(f"plugin {plugin.name!r} of {plugin}: {plugin.problems[0]}")
    if registry.problems:
        raise PluginError(registry.problems[0])


def _kind(kind: str | type[Spec]) -> str:
    name = kind if isinstance(kind, str) else cast("str", kind.kind)
    if name not in KINDS:
        raise UnknownNameError(f"{name!r} is no kind of spec; allowed are {', '.join(KINDS)}")
    return name
