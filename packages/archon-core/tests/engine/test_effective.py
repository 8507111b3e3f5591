import pytest

from archon_core.config.schema import ArchonOptions, EngineConfig, MicroBatchSpec
from archon_core.engine.effective import resolve_effective
from archon_core.errors import ConfigError


def resolve(config, explicit=(), device="cpu"):
    return resolve_effective(config, role="actor", device=device, explicit=frozenset(explicit))


def test_defaults_on_a_cpu_are_recorded_with_their_reasons():
    effective, decisions = resolve(EngineConfig())
    assert (effective.dtype, effective.compile) == ("float32", False)
    by_option = {decision.option: decision for decision in decisions}
    assert by_option["actor.archon.enable_compile"].requested == "true"
    assert by_option["actor.archon.enable_compile"].effective == "false"
    assert by_option["actor.dtype"].effective == "float32"
    assert all(decision.reason for decision in decisions)


@pytest.mark.parametrize(
    ("config", "option"),
    [
        (EngineConfig(dtype="bfloat16"), "actor.dtype: found bfloat16"),
        (EngineConfig(gradient_checkpointing=True), "actor.gradient_checkpointing: found true"),
        (EngineConfig(archon=ArchonOptions(offload_params=True)), "actor.archon.offload_params: found true"),
        (EngineConfig(archon=ArchonOptions(use_deterministic_algorithms=True)), "use_deterministic_algorithms"),
        (EngineConfig(archon=ArchonOptions(ac_debug=True)), "actor.archon.ac_debug"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused_by_name(config, option):
    with pytest.raises(ConfigError, match=option):
        resolve(config)


def test_all_refusals_come_in_one_message():
    config = EngineConfig(dtype="bfloat16", gradient_checkpointing=True)
    with pytest.raises(ConfigError, match=r"(?s)actor\.dtype.*actor\.gradient_checkpointing"):
        resolve(config)


def test_compile_written_by_the_user_is_refused_where_the_default_is_a_decision():
    with pytest.raises(ConfigError, match=r"actor\.archon\.enable_compile: found true"):
        resolve(EngineConfig(), explicit={"actor.archon.enable_compile"})


def test_strict_turns_a_decision_into_an_error_and_defaults_by_device_do_not_count():
    with pytest.raises(ConfigError, match=r"(?s)strict=true.*enable_compile: asked true, would be false"):
        resolve(EngineConfig(archon=ArchonOptions(strict=True)))
    effective, _ = resolve(EngineConfig(archon=ArchonOptions(strict=True, enable_compile=False)))
    assert effective.dtype == "float32"


def test_padding_to_the_maximum_needs_a_maximum():
    with pytest.raises(ConfigError, match=r"actor\.pad_to_maximum: found true without a maximum"):
        resolve(EngineConfig(pad_to_maximum=True))
    spec = MicroBatchSpec(max_tokens_per_mb=64)
    effective, _ = resolve(EngineConfig(pad_to_maximum=True, mb_spec=spec, batch_align_to=8))
    assert (effective.pad_at_least, effective.pad_multiple) == (64, 8)
