"""The scripts of jobs, from the options of a run."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from archon_core.config.rules import broken_rules
from archon_core.contracts.scheduling import SchedulingSpec
from archon_core.errors import ConfigError
from archon_slurm.options import SlurmOptions
from archon_slurm.resources import directives, in_container, srun_options
from archon_slurm.script import JobRequest, check_template, literally, read_template, render_script

JOB = JobRequest(
    name="e/t/trainer",
    title="trainer of e/t: archon:d4",
    nodes=2,
    command=["python", "-m", "x y"],
    output="/runs/e/t/logs/job-%j.log",
    folder=Path("/home/me"),
)


def options_of(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_a_script_asks_for_machines_and_starts_one_process_on_each(tmp_path: Path) -> None:
    script = render_script(JOB, SlurmOptions(partition="gpu", time_limit="1-00:00:00", sbatch=["--constraint=ib"]))
    assert options_of(script) == [
        "--job-name=e/t/trainer",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--output=/runs/e/t/logs/job-%j.log",
        "--open-mode=append",
        "--chdir=/home/me",
        "--partition=gpu",
        "--time=1-00:00:00",
        "--no-requeue",
        "--constraint=ib",
    ]
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    srun.chmod(0o755)
    done = subprocess.run(
        ["bash"], input=script, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "--nodes=2",
        "--ntasks=2",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
        "python",
        "-m",
        "x y",
    ]


def test_options_are_quoted_as_sbatch_reads_them() -> None:
    comment = r"""--comment="it's" c:\new #1"""
    job = replace(JOB, folder=Path("/home/me#1"), output="/my runs/%%50/job-%j.log")
    found = options_of(render_script(job, SlurmOptions(sbatch=[comment])))
    assert found[3:6:2] == ['"--output=/my runs/%%50/job-%j.log"', '"--chdir=/home/me#1"'], "# begins a comment"
    assert found[-1] == r'''"--comment=\"it's\" c:\\new #1"'''
    assert literally(Path("/runs/50%u")) == "/runs/50%%u"


@pytest.mark.parametrize(
    ("job", "options", "expected"),
    [
        (replace(JOB, devices=8), SlurmOptions(), "--gres=gpu:8"),
        (replace(JOB, devices=8), SlurmOptions(gres="gpu:a100"), "--gres=gpu:a100:8"),
        (replace(JOB, requeue=True), SlurmOptions(), "--requeue"),
        (replace(JOB, after=["3", "4"]), SlurmOptions(), "--dependency=after:3:4"),
    ],
)
def test_devices_requeueing_and_order_are_options(job: JobRequest, options: SlurmOptions, expected: str) -> None:
    assert expected in options_of(render_script(job, options))


def test_a_job_without_devices_asks_for_none() -> None:
    assert not [option for option in options_of(render_script(JOB, SlurmOptions())) if "gres" in option]
    script = render_script(replace(JOB, devices=8), SlurmOptions(gres=None))
    assert not [option for option in options_of(script) if "gres" in option]


def test_what_processes_get_counts_per_machine() -> None:
    spec = SchedulingSpec(cpu=4, mem=32, nodelist="n[1-4]", exclusive=True, srun_additional_args="--mpi=pmi2 -K")
    assert directives(spec, 8) == ["--cpus-per-task=32", "--mem=256G", "--nodelist=n[1-4]", "--exclusive"]
    assert srun_options(spec, 8) == ["--cpus-per-task=32", "--mpi=pmi2", "-K"]
    assert directives(SchedulingSpec(), 8) == srun_options(SchedulingSpec(), 8) == []


def test_an_image_runs_its_own_python() -> None:
    spec = SchedulingSpec(image="a.sif", mount="/data:/data")
    command = ["apptainer", "exec", "--nv", "--bind", "/data:/data", "a.sif", "python3", "-m", "x"]
    assert in_container("/venv/python", ["-m", "x"], spec, devices=1) == command
    plain = replace(spec, container_type="none")
    assert in_container("/venv/python", ["-m", "x"], plain, devices=1) == ["/venv/python", "-m", "x"]


def test_a_template_of_the_user_gets_the_same_values(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(
        read_template(None).replace("exec srun", "module load cuda\nexec srun") + "\n# ${HOME} {{ name }}\n"
    )
    script = render_script(JOB, SlurmOptions(template=str(path)))
    assert "module load cuda\nexec srun --nodes=2" in script
    assert "# ${HOME} e/t/trainer" in script


def test_values_in_a_template_of_the_user_are_words_of_the_shell(tmp_path: Path) -> None:
    path = tmp_path / "job.sh"
    path.write_text(f"{read_template(None)}\necho {{{{name}}}} {{{{folder}}}} {{{{title}}}}\n")
    job = replace(JOB, name="$(x) y/t/trainer", folder=Path("/home/`x`"), title="trainer of $(x) y/t")
    script = render_script(job, SlurmOptions(template=str(path)))
    assert shlex.split(script.splitlines()[-1])[1:] == [job.name, str(job.folder), *job.title.split()]
    assert "echo '$(x) y/t/trainer' '/home/`x`' trainer of '$(x)' y/t\n" in script


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{directives}} {{command}} {{gpus}}", "has {{gpus}}; allowed are title, directives, nodes,"),
        ("{{directives}}", "has no {{command}}, without which the job starts nothing"),
        ("{{directives}}\nsrun {{command}}\n", "does not begin with #!, and SLURM takes it for no script"),
        (
            "#!/bin/bash\n\nmodule load cuda\n{{directives}}\nsrun {{command}}\n",
            "has 'module load cuda' before {{directives}}; SLURM reads options up to the first command; move it below",
        ),
        ("#!/bin/bash\n# {{directives}}\nsrun {{command}}\n", "has more than {{directives}} in its line"),
    ],
)
def test_a_template_that_cannot_work_is_refused(tmp_path: Path, template: str, message: str) -> None:
    path = tmp_path / "job.sh"
    path.write_text(template)
    with pytest.raises(ConfigError) as raised:
        check_template(SlurmOptions(template=str(path)))
    assert message in str(raised.value)
    with pytest.raises(ConfigError, match="cannot read"):
        check_template(SlurmOptions(template=str(tmp_path / "missing")))


def test_no_option_adds_a_line_to_the_script() -> None:
    with pytest.raises(ConfigError, match="allowed are options of one line"):
        render_script(replace(JOB, name="e\nrm -r x/trainer"), SlurmOptions())
    assert "\nrm" not in render_script(replace(JOB, title="e\nrm -r x"), SlurmOptions())


@pytest.mark.parametrize(
    "section",
    [
        SlurmOptions(partition="a b"),
        SlurmOptions(account="a\nb"),
        SlurmOptions(gres=""),
        SlurmOptions(sbatch=["constraint=ib"]),
        SlurmOptions(sbatch=["--comment=a\nb"]),
        SlurmOptions(poll_seconds=0),
        SchedulingSpec(cpu=0),
        SchedulingSpec(nodelist="n1\nn2"),
        SchedulingSpec(srun_additional_args="-K bash"),
        SchedulingSpec(srun_additional_args="--chdir=$PWD"),
        SchedulingSpec(srun_additional_args="--x='"),
        SchedulingSpec(container_type="docker"),
        SchedulingSpec(env_vars={"RANK": "3"}),
        SchedulingSpec(env_vars={"A-B": "3"}),
        SchedulingSpec(env_vars={"LD_PRELOAD": "x.so"}),
        SchedulingSpec(env_vars={"PYTHONPATH": "x"}),
        SchedulingSpec(env_vars={"PATH": "x"}),
        SchedulingSpec(env_vars={"TORCHELASTIC_USE_AGENT_STORE": "True"}),
        SchedulingSpec(env_vars={"A": "x\0y"}),
        SchedulingSpec(nodelist="n[1-"),
        SchedulingSpec(nodelist=""),
        SchedulingSpec(exclude="n[3-1]"),
        SchedulingSpec(image=""),
        SchedulingSpec(image="--bind=/:/host"),
    ],
)
def test_bad_values_break_a_rule(section: object) -> None:
    assert [*broken_rules(section)]
