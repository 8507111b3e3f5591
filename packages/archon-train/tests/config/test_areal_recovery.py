"""AReaL's ``recover`` becomes options of ``trainer``: checkpoints, resuming, restarts."""

from collections.abc import Callable

import pytest

from archon_core.config.loading import LoadedConfig
from archon_core.errors import ConfigError
from archon_core.plugins import Registry
from archon_train.preflight import plan_run

Load = Callable[..., LoadedConfig]


@pytest.mark.parametrize(
    ("mode", "resume", "auto_resume"),
    [
        ("disabled", False, False),
        ("off", False, False),
        ("resume", True, False),
        ("auto", False, True),
        ("on", False, True),
        ("fault", False, True),
    ],
)
def test_recovery_modes_say_whether_a_run_goes_on(load: Load, mode: str, resume: bool, auto_resume: bool) -> None:
    trainer = load(f"recover: {{mode: {mode}}}\n").config.trainer
    assert (trainer.resume, trainer.auto_resume) == (resume, auto_resume)


@pytest.mark.parametrize(
    ("text", "restarts", "requested", "effective"),
    [
        ("recover: {mode: auto}", 3, "left out", "trainer.max_restarts=3"),
        ("recover: {mode: on, retries: 7}", 7, "7", "trainer.max_restarts=7"),
        ("recover: {mode: fault, retries: 0}", 0, "0", "trainer.max_restarts=0"),
        ("recover: {mode: auto, retries: '${seed}'}\nseed: 5", 5, "5", "trainer.max_restarts=5"),
        ("recover: {mode: auto, retries: 7}\ntrainer: {max_restarts: 2}", 2, "7", "no effect"),
        ("recover: {mode: disabled, retries: 7}", 0, "7", "no effect"),
        ("recover: {mode: resume, retries: 1}", 0, "1", "no effect"),
        ("recover: {retries: 2}", 0, "2", "no effect"),
        ("recover: {mode: disabled, retries: 3}", 0, "", ""),
        ("recover: {mode: 'off'}", 0, "", ""),
        ("recover: {mode: auto}\ntrainer: {max_restarts: 2}", 2, "", ""),
    ],
)
def test_retries_are_restarts_where_areal_restarts_a_failed_run(
    load: Load, text: str, restarts: int, requested: str, effective: str
) -> None:
    loaded = load(text + "\n")
    assert loaded.config.trainer.max_restarts == restarts
    made = [(d.requested, d.effective) for d in loaded.decisions if d.option == "recover.retries"]
    assert made == ([(requested, effective)] if requested else [])


def test_invalid_retries_are_refused_under_the_name_that_restarts(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml:1: trainer\.max_restarts: found 'many'"):
        load("recover: {mode: auto, retries: many}\n")


def test_an_unknown_recovery_mode_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"recover\.mode: found maybe; allowed are auto, disabled"):
        load("recover: {mode: maybe}\n")


def test_checkpoints_for_recovery_are_checkpoints(load: Load) -> None:
    loaded = load("recover: {freq_steps: 7}\nsaver: {freq_steps: null}\n")
    assert loaded.config.trainer.save_every == 7
    assert "recover.freq_steps" not in [d.option for d in loaded.decisions]
    assert load("recover: {freq_steps: 7}\nsaver: {freq_steps: 3}\n").config.trainer.save_every == 3


@pytest.mark.parametrize(
    ("text", "background"),
    [
        ("saver: {mode: async}", True),
        ("saver: {mode: sync}", False),
        ("saver: {mode: auto}", False),
        ("saver: {mode: async}\ntrainer: {async_save: false}", False),
    ],
)
def test_checkpoints_are_written_in_the_background_if_the_saver_is_asynchronous(
    load: Load, text: str, background: bool
) -> None:
    loaded = load(text + "\n")
    assert loaded.config.trainer.async_save is background
    assert ("saver.mode" in [d.option for d in loaded.decisions]) is ("async}" in text)


@pytest.mark.parametrize(
    ("text", "options", "values"),
    [
        ("recover: {mode: on, freq_secs: 3600}", "trainer.auto_resume, trainer.max_restarts", "true, 3"),
        ("recover: {mode: auto, freq_epochs: 1, retries: 0}", "trainer.auto_resume", "true"),
        ("trainer: {max_restarts: 2}", "trainer.max_restarts", "2"),
        ("recover: {mode: on, freq_steps: 5}", "", ""),
        ("trainer: {max_restarts: 2, save_every: 4}", "", ""),
        ("recover: {mode: disabled, freq_secs: 3600}", "", ""),
    ],
)
def test_restarts_without_a_checkpoint_to_restart_from_are_a_decision(
    load: Load, registry: Registry, text: str, options: str, values: str
) -> None:
    loaded = load("actor: {model_config: {model_type: tiny}}\n" + text + "\n")
    made = [d for d in plan_run(loaded, registry).decisions if "trainer.save_every" in d.reason]
    assert [(d.option, d.requested) for d in made] == ([(options, values)] if options else [])
