"""``archon algorithms``, and that every preset is a set of options that its algorithm takes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from archon_core.cli.main import main
from archon_core.errors import UnknownNameError
from archon_core.plugins import AlgorithmSpec, PolicyLossSpec, registry
from archon_rl.advantages import ConstantLambda, LengthAdaptiveLambda, Normalisation
from archon_rl.algorithm import Algorithm
from archon_rl.losses.aggregation import SequenceMean
from archon_rl.losses.behaviour import RejectionSampling
from archon_rl.losses.distillation import DistillationTerm
from archon_rl.losses.kl import KLTerm
from archon_rl.losses.policy import ClippedPolicyTerm
from archon_rl.named_settings import NAMED_SETTINGS, find_settings


def compose(run, *names: str, file: tuple[str, ...] = ()) -> Algorithm:
    overrides = [*file, *(override for name in names for override in find_settings(name).overrides)]
    if any(override.startswith("teacher.") for override in overrides):
        overrides.append("teacher.model_config={model_type: qwen3}")
    config = run.config("ref={}", *overrides)
    return registry().get(AlgorithmSpec, config.algorithm).load()(config, [])


@pytest.mark.parametrize("name", [settings.name for settings in NAMED_SETTINGS])
def test_an_algorithm_takes_the_options_of_every_preset_alone_and_corrected(run, name):
    settings = find_settings(name)
    if name == "on-policy distillation":
        assert not compose(run, name).needs_rewards
        return
    assert compose(run, name).name == settings.algorithm
    corrections = [other.name for other in NAMED_SETTINGS if other.corrects]
    if not settings.corrects and name != "DPPO":
        for correction in corrections:
            assert compose(run, name, correction).loss.behaviour is not None


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("dapo", "; DAPO is a preset: archon train FILE algorithm=grpo $(archon algorithms DAPO)\n"),
        ("vc_ppo", "; VC-PPO is a preset: archon train FILE algorithm=ppo $(archon algorithms VC-PPO)\n"),
        (
            "vapolambda",
            "; VAPO lambda is a preset: archon train FILE algorithm=grpo $(archon algorithms 'VAPO lambda')",
        ),
        ("GRPO", "; did you mean 'grpo'?"),
        ("grppo", "; did you mean 'grpo'?"),
    ],
)
def test_a_preset_as_algorithm_gets_the_command_that_uses_it(name, advice):
    with pytest.raises(UnknownNameError) as raised:
        registry().get(AlgorithmSpec, name)
    assert f"no installed plugin provides it{advice}" in str(raised.value)


def test_presets_are_what_their_papers_say(run):
    grpo = compose(run, "GRPO")
    assert (grpo.n_minibatches, grpo.aggregation) == (1, SequenceMean())
    gspo = compose(run, "GSPO").loss
    assert (gspo.level, gspo.eps_clip, gspo.eps_clip_higher) == ("sequence", 3e-4, 4e-4)
    assert compose(run, "Dr.GRPO").advantages.reward_norm == Normalisation("group", None)
    assert compose(run, "RLOO").advantages.reward_norm == Normalisation("group", None, leave_one_out=True)
    assert compose(run, "LitePPO").advantages.reward_norm == Normalisation("group", "batch")
    assert compose(run, "OPO").advantages.reward_norm == Normalisation("group", None, mean_weights="length")
    reinforce = compose(run, "REINFORCE++").advantages
    assert (reinforce.reward_norm, reinforce.adv_norm) == (None, Normalisation("batch", "batch"))
    baseline = compose(run, "REINFORCE++ baseline").advantages
    assert baseline.reward_norm == Normalisation("group", None)
    assert baseline.adv_norm == Normalisation("batch", "batch")
    # Eq. 4 has the KL in the reward, eq. 8 in the loss.
    assert (reinforce.kl_ctl, reinforce.kl_estimator, baseline.kl_ctl) == (1e-3, "k1", 0.0)
    assert KLTerm(1e-3, "k2") in compose(run, "REINFORCE++ baseline").regularisers
    assert not any(isinstance(term, KLTerm) for term in compose(run, "REINFORCE++").regularisers)
    assert compose(run, "MaxRL").advantages.reward_norm == Normalisation("group", "group", scale="mean", eps=0.0)
    assert compose(run, "VAPO lambda").advantages.gae_lambda == LengthAdaptiveLambda(0.05)
    vapo = compose(run, "VAPO")
    assert (vapo.advantages.gae_lambda, vapo.advantages.returns_lambda) == (
        LengthAdaptiveLambda(0.05),
        ConstantLambda(1),
    )
    assert (vapo.critic.warmup_steps, vapo.loss.eps_clip_higher) == (50, 0.28)
    assert compose(run, "PPO").critic.loss.eps_clip is None
    assert compose(run, "M2PO").loss == ClippedPolicyTerm(eps_clip=None, masks=("m2_kept",))
    pure, joint = compose(run, "on-policy distillation"), compose(run, "KDRL")
    assert pure.loss == DistillationTerm(1.0, has_baseline=True)
    assert joint.loss == compose(run).loss
    assert joint.regularisers[-1] == DistillationTerm(0.005, has_baseline=True)
    rules = {name: compose(run, name).loss.behaviour.rejection for name in ("TIS", "MIS", "IcePop", "KPop")}
    assert rules == {
        "TIS": RejectionSampling(action="clamp", upper=2.0),
        "MIS": RejectionSampling(level="sequence", agg="sum", upper=2.0),
        "IcePop": RejectionSampling(lower=0.5, upper=5.0),
        "KPop": RejectionSampling(metric="binary_kl", upper=2.0),
    }


KL = {
    "GRPO": (0.0, (0.04, "k3")),  # arXiv:2402.03300, eq. 3 and 4, and section 4.2
    "RLOO": (0.1, None),  # arXiv:2402.14740, eq. 4: in the reward
    "REINFORCE++": (1e-3, None),
    "REINFORCE++ baseline": (0.0, (1e-3, "k2")),
}
"""Presets with a KL to the reference -> its weights in the reward and in the loss."""

PARTS = ("dual clip", "VAPO lambda", "on-policy distillation")
"""Presets that say nothing about the KL: parts of an algorithm, and training without a reward."""

WHOLE = [named.name for named in NAMED_SETTINGS if not named.corrects and named.name not in PARTS]


@pytest.mark.parametrize("name", WHOLE)
def test_a_preset_decides_about_the_kl_whatever_the_file_says(run, name):
    in_reward, in_loss = KL.get(name, (0.0, None))
    algorithm = compose(run, name, file=("actor.kl_ctl=0.5", "actor.kl_loss_coef=0.7"))
    terms = [(term.coefficient, term.estimator) for term in algorithm.regularisers if isinstance(term, KLTerm)]
    assert (algorithm.advantages.kl_ctl, terms) == (in_reward, [in_loss] if in_loss else [])
    assert ("ref" in algorithm.roles) == (name in KL)
    assert (find_settings(name).options.get("ref") == "{}") == (name in KL)


def test_an_override_after_a_preset_wins(run):
    config = run.config("ref={}", *find_settings("DAPO").overrides, "actor.kl_ctl=0.2")
    assert (config.actor.kl_ctl, config.actor.eps_clip_higher) == (0.2, 0.28)


def archon(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["algorithms", *arguments])
    shown = capsys.readouterr()
    return ended.value.code or 0, shown.out, shown.err


def test_algorithms_lists_algorithms_losses_and_presets_with_their_sources(capsys):
    code, text, _ = archon(capsys)
    assert code == 0
    for spec in (*registry().all(AlgorithmSpec), *registry().all(PolicyLossSpec)):
        assert spec.name in text
    for settings in NAMED_SETTINGS:
        assert settings.name in text
        assert settings.source in text


def test_algorithms_as_json_holds_options(capsys):
    data = json.loads(archon(capsys, "--json")[1])
    assert {loss["name"]: loss["source"] for loss in data["policy_losses"]}["sapo"] == "arXiv:2511.20347"
    presets = {preset["name"]: preset for preset in data["presets"]}
    assert presets["KPop"]["options"]["actor.rejection_sampling.metric"] == "binary_kl"
    assert (presets["KPop"]["algorithm"], presets["VAPO"]["algorithm"]) == ("grpo", "ppo")
    assert {"grpo", "ppo"} <= {algorithm["name"] for algorithm in data["algorithms"]}


@pytest.mark.parametrize("name", ["Dr.GRPO", "drgrpo", "DR-GRPO", "dr_grpo"])
def test_a_preset_is_printed_as_overrides(capsys, name):
    code, text, _ = archon(capsys, name)
    assert code == 0
    assert text.split() == list(find_settings("Dr.GRPO").overrides)


def test_an_unknown_preset_names_those_that_exist(capsys):
    code, _, error = archon(capsys, "GSP")
    assert code != 0
    assert "found 'GSP'; allowed are GRPO" in error
    assert "did you mean 'GSPO'" in error


def test_the_command_imports_no_torch():
    code = "import sys, archon_rl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FILE = """
actor: {path: m, eps_clip: 0.2, eps_clip_higher: 0.3, adv_norm: {mean_level: batch, std_level: batch}}
"""
AREAL_FILE = """
total_train_epochs: 1
actor: {path: m, backend: "archon:d1", kl_ctl: 0.001, reward_norm: null, ppo_n_minibatches: 1}
ref: {path: r}
"""


@pytest.mark.parametrize(
    ("preset", "text", "free", "kept"),
    [
        (
            "DAPO",
            FILE,
            ["actor.reward_norm.mean_level=group", "actor.loss_aggregation=token", "actor.kl_ctl=0.0"],
            ["actor.adv_norm=a section; DAPO has null", "actor.eps_clip_higher=0.3; DAPO has 0.28"],
        ),
        (
            "GRPO",
            AREAL_FILE,
            ["actor.adv_norm=null", "actor.kl_loss_coef=0.04"],
            [
                "actor.reward_norm.mean_level=null; GRPO has group",
                "actor.reward_norm.std_level=null; GRPO has group",
                "actor.kl_ctl=0.001; GRPO has 0.0",
            ],
        ),
    ],
)
def test_a_file_wins_over_a_preset_that_keeps_it(capsys, tmp_path, preset, text, free, kept):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    code, out, error = archon(capsys, preset, "--keep", str(path))
    assert code == 0
    assert set(free) <= set(out.split())
    written = [line.partition("=")[0] for line in kept] + ["actor.eps_clip", "ref", "actor.ppo_n_minibatches"]
    assert not [override for override in out.split() if override.partition("=")[0] in written]
    assert error.splitlines() == [f"kept from run.yaml: {line}" for line in kept]


def test_a_number_in_the_file_differs_from_a_name_in_the_preset(capsys, tmp_path):
    (tmp_path / "run.yaml").write_text("actor: {gae_lambda: 0.9}\n")
    _, out, error = archon(capsys, "VAPO lambda", "--keep", str(tmp_path / "run.yaml"))
    assert out.split() == ["actor.gae_lambda_kwargs.alpha=0.05"]
    assert error.strip() == "kept from run.yaml: actor.gae_lambda=0.9; VAPO lambda has length_adaptive"


def test_a_file_is_kept_beside_a_preset_only(capsys, tmp_path):
    code, _, error = archon(capsys, "--keep", str(tmp_path))
    assert code != 0
    assert "--keep: found without a preset, or with --json" in error
