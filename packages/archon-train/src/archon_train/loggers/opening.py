"""The metrics loggers that a run uses: which modules they lack, and how they are opened."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from archon_core.config.rules import written_value
from archon_core.contracts.decisions import Decision
from archon_core.contracts.loggers import LoggedRun, LoggerSpec, MetricsLogger
from archon_core.errors import ConfigError
from archon_core.plugins import Registry


@dataclass(frozen=True)
class UsedLogger:
    """A logger that the options select.

    Attributes:
        spec: its spec.
        options: its section.
    """

    spec: LoggerSpec
    options: Any

    @property
    def missing(self) -> list[str]:
        """The distributions of the modules that it lacks."""
        return [name for module, name in self.spec.modules if importlib.util.find_spec(module) is None]


def used_loggers(config: Any, registry: Registry) -> list[UsedLogger]:
    """The loggers that a configuration selects, installed or not."""
    found = []
    for spec in registry.all(LoggerSpec):
        options = attrgetter(spec.section)(config)
        if options.is_used:
            found.append(UsedLogger(spec, options))
    return found


def unused_logger_options(config: Any, registry: Registry, explicit: Collection[str]) -> Iterator[Decision]:
    """The options of loggers that are switched off.

    Args:
        explicit: dotted names of the options that the user wrote.
    """
    used = {logger.spec.name for logger in used_loggers(config, registry)}
    for spec in registry.all(LoggerSpec):
        if spec.name in used:
            continue
        options = attrgetter(spec.section)(config)
        for field in fields(options):
            option = f"{spec.section}.{field.name}"
            # An option that is a mapping is explicit through its entries.
            is_written = any(name == option or name.startswith(f"{option}.") for name in explicit)
            if is_written and field.name != spec.off.partition("=")[0]:
                value = written_value(getattr(options, field.name))
                yield Decision(option, value, "no effect", f"{spec.name} is switched off")


def logger_problems(config: Any, registry: Registry) -> Iterator[str]:
    """Loggers that cannot run here, as found / allowed / fix sentences."""
    for logger in used_loggers(config, registry):
        if logger.missing and not logger.spec.optional:
            yield (
                f"{logger.spec.section}: found it switched on, but {logger.spec.name} is not installed; install it "
                f"(pip install {' '.join(logger.missing)}), or set {logger.spec.section}.{logger.spec.off}"
            )


def open_loggers(
    config: Any, registry: Registry, run: LoggedRun, decisions: list[Decision]
) -> Iterator[tuple[str, MetricsLogger]]:
    """Open the loggers that a run uses; yields their names with them.

    Args:
        decisions: get one for each optional logger that is not installed.

    Raises:
        ConfigError: a logger cannot be opened.
    """
    for logger in used_loggers(config, registry):
        spec = logger.spec
        if logger.missing:
            decisions.append(
                Decision(
                    option=spec.section,
                    requested=f"metrics.jsonl and {spec.name}",
                    effective="metrics.jsonl",
                    reason=f"the package is not installed: pip install {' '.join(logger.missing)}",
                )
            )
            continue
        try:
            yield spec.name, spec.load()(logger.options, run)
        except ConfigError:
            raise
        except Exception as error:  # libraries raise their own types, such as for a wrong key
            off = f", or set {spec.section}.{spec.off}" if spec.off else ""
            raise ConfigError(
                f"{spec.section}: {spec.name} cannot be opened: {type(error).__name__}: {error}; "
                f"correct its options{off}"
            ) from error
