import pytest

from archon_core.contracts.engine_config import MicroBatchSpec
from archon_core.errors import ConfigError
from archon_core.layout import ParallelDims
from archon_engine.options.archon import ArchonEngineConfig, ArchonOptions
from archon_engine.options.effective import resolve_effective


def resolve(config, explicit=(), device="cpu", dims=None):
    return resolve_effective(config, role="actor", device=device, dims=dims, explicit=frozenset(explicit))


def test_defaults_on_a_cpu_are_recorded_with_their_reasons():
    effective, decisions = resolve(ArchonEngineConfig())
    assert (effective.compute_dtype, effective.compile) == ("float32", False)
    by_option = {decision.option: decision for decision in decisions}
    assert by_option["actor.archon.enable_compile"].requested == "true"
    assert by_option["actor.archon.enable_compile"].effective == "false"
    assert by_option["actor.dtype"].effective == "float32"
    assert all(decision.reason for decision in decisions)


def test_strict_turns_a_decision_into_an_error_and_defaults_by_device_do_not_count():
    with pytest.raises(ConfigError, match=r"(?s)strict: found true.*enable_compile: found true, would use false"):
        resolve(ArchonEngineConfig(archon=ArchonOptions(strict=True)))
    effective, _ = resolve(ArchonEngineConfig(archon=ArchonOptions(strict=True, enable_compile=False)))
    assert effective.compute_dtype == "float32"


def test_padding_to_the_maximum_needs_a_maximum():
    with pytest.raises(ConfigError, match=r"actor\.pad_to_maximum: found true with mb_spec\.max_tokens_per_mb=null"):
        resolve(ArchonEngineConfig(pad_to_maximum=True))
    spec = MicroBatchSpec(max_tokens_per_mb=64)
    effective, _ = resolve(ArchonEngineConfig(pad_to_maximum=True, mb_spec=spec, batch_align_to=8))
    assert (effective.pad_at_least, effective.pad_multiple) == (64, 8)


def test_checkpointing_takes_effect_through_its_global_switch():
    options = ArchonOptions(ac_mode="full", enable_compile=False)
    assert resolve(ArchonEngineConfig(archon=options))[0].ac_mode == "none"
    assert resolve(ArchonEngineConfig(archon=options, gradient_checkpointing=True))[0].ac_mode == "full"
    assert resolve(ArchonEngineConfig(archon=options, gradient_checkpointing=True, optimizer=None))[0].ac_mode == "none"


@pytest.mark.parametrize(("option", "every"), [("op", None), ("1", 1), ("3", 3)])
def test_selective_checkpointing_is_by_operation_or_every_nth_block(option, every):
    config = ArchonEngineConfig(gradient_checkpointing=True, archon=ArchonOptions(selective_ac_option=option))
    effective, _ = resolve(config)
    assert (effective.ac_mode, effective.ac_every) == ("selective", every)


def test_compilation_on_a_cpu_is_what_the_user_wrote():
    assert resolve(ArchonEngineConfig(), explicit={"actor.archon.enable_compile"})[0].compile
    assert not resolve(ArchonEngineConfig(), explicit={"critic.archon.enable_compile"})[0].compile
    assert resolve(ArchonEngineConfig(), device="cuda")[0].compile


@pytest.mark.parametrize(
    ("config", "device", "types"),
    [
        (ArchonEngineConfig(), "cpu", ("float32", "float32", "float32")),
        (ArchonEngineConfig(), "cuda", ("bfloat16", "float32", "float32")),
        (ArchonEngineConfig(dtype="bfloat16"), "cpu", ("bfloat16", "float32", "float32")),
        (ArchonEngineConfig(dtype="bfloat16", optimizer=None), "cpu", ("bfloat16", "bfloat16", "float32")),
        (ArchonEngineConfig(dtype="float64"), "cpu", ("float64", "float64", "float64")),
        (ArchonEngineConfig(archon=ArchonOptions(master_dtype="float64")), "cpu", ("float32", "float64", "float64")),
        (
            ArchonEngineConfig(dtype="bfloat16", grad_reduce_dtype="bfloat16"),
            "cpu",
            ("bfloat16", "float32", "bfloat16"),
        ),
    ],
)
def test_weights_are_kept_and_gradients_summed_in_at_least_fp32_unless_asked(config, device, types):
    effective, _ = resolve(config, device=device)
    assert (effective.compute_dtype, effective.master_dtype, effective.reduce_dtype) == types


def test_padding_joins_what_was_asked_with_what_the_layout_needs():
    assert resolve(ArchonEngineConfig(batch_align_to=6), dims=ParallelDims(tp=4))[0].pad_multiple == 12
    assert resolve(ArchonEngineConfig(), dims=ParallelDims(dp_shard=2, tp=4))[0].pad_multiple == 4


@pytest.mark.parametrize(
    ("policy", "dims", "expected"),
    [
        ("default", ParallelDims(dp_shard=2), True),
        ("default", ParallelDims(dp_shard=2, pp=2), False),
        ("always", ParallelDims(dp_shard=2, pp=2), True),
        ("never", ParallelDims(dp_shard=2), False),
    ],
)
def test_whole_weights_are_freed_after_forward_except_in_a_pipeline(policy, dims, expected):
    options = ArchonOptions(reshard_after_forward_policy=policy)
    assert resolve(ArchonEngineConfig(archon=options), dims=dims)[0].reshard_after_forward is expected
