"""The page: complete, escaped, self-contained, also about damaged and unfinished runs."""

from __future__ import annotations

import fcntl
import json
import re
from html.parser import HTMLParser

import pytest
from made_runs import NASTY, asynchronous_row, sample_line, step_row, write_run

from archon_core.errors import ConfigError
from archon_core.run_files.starts import Start, render_starts
from archon_report.cli import report
from archon_report.page import render_page
from archon_report.run import read_run, read_runs

RECORDING = {
    "format": 1,
    "schedule": "GPipe",
    "rank_of": [0, 1],
    "n_micro_batches": 1,
    "step": 2,
    "ranks": [[["0F0", 0.0, 1.0], ["0B0", 3.5, 5.5]], [["1F0", 1.5, 2.0], ["1B0", 2.0, 3.0]]],
}


class Reader(HTMLParser):
    """Collects texts, attributes and the data of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.data = {}
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in {"meta", "link", "input"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.data = self.data or json.loads(data)
        elif self.open[-1:] != ["style"]:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


@pytest.fixture
def full(tmp_path):
    """A run with every file that a page can show."""
    folder = write_run(
        tmp_path / "demo" / "full",
        [step_row(1, **{"moe/aux_loss": 1.0}), step_row(2, loss="NaN"), step_row(3, **{"eval/reward": 0.25})],
        config=f"algorithm: grpo\nname: {json.dumps(NASTY)}\nactor: {{backend: 'archon:p2', lr: 0.5}}\n",
    )
    (folder / "decisions.json").write_text(
        json.dumps([{"option": "a.b", "requested": NASTY, "effective": "2", "reason": "because"}])
    )
    (folder / "pipeline-actor.json").write_text(json.dumps(RECORDING))
    loads = [{"step": n, "layers": {"0": [1, 2, 3, 2], "1": [2, 2, 2, 2]}} for n in (1, 2)]
    (folder / "expert_load-actor.jsonl").write_text("".join(json.dumps(one) + "\n" for one in loads))
    (folder / "trajectories").mkdir()
    nasty = {"segments": [{"text": NASTY, "version": None}, {"text": NASTY, "version": 1}], "pieces": []}
    (folder / "trajectories/step-00000001.jsonl").write_text(sample_line() + sample_line(reward=0.0, **nasty))
    (folder / "trajectories/step-00000003.jsonl").write_text(sample_line(3, **nasty))
    (folder / "profile/step-000002").mkdir(parents=True)
    (folder / "profile/step-000002/rank-0.trace.json.gz").write_bytes(b"x" * 2500)
    (folder / "profile/step-000002/rank-0.memory.pickle").write_bytes(b"x")
    start = Start("2026-01-01T00:00:00+00:00", None, "archon train x.yaml", {"torch": "2.13.0", "machine": NASTY})
    (folder / "starts.json").write_text(render_starts([start]))
    return folder


def test_every_part_of_a_run_is_on_the_page_and_nothing_is_loaded(full):
    html = render_page([read_run(full)])
    page = Reader(html)
    for text in (
        "Curves",
        "Time",
        "Expert load",
        "Pipeline",
        "Samples",
        "Options",
        "Decisions",
        "Environment",
        "Files",
    ):
        assert f"{text}" in page.text
    assert "demo/full" in page.text
    assert "loss is not finite at step 2" in page.text
    assert "actor: GPipe, optimizer step 2, 1 micro-batch" in page.text
    assert "Measured: 5500.0 ms, bubble 144% of the work" in page.text
    assert "rank-0.trace.json.gz" in page.text
    assert "2.5 KB" in page.text
    assert "perfetto" in page.text
    assert "torch" in page.text
    assert [one for one in page.attributes if one[1] in ("src", "srcset", "action")] == []
    assert "(?<" not in html, "Safari before 16.4 refuses a script with lookbehind"
    assert {value for _, name, value in page.attributes if name == "href" and value[:1] != "#"} == {"data:,"}
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import", style)
    assert page.data["runs"][0]["series"]["loss"] == [[1, 2, 3], [1.0, None, 0.333333]]


def test_a_run_that_samples_ahead_shows_who_waits_what_is_dropped_versions_and_publication(tmp_path):
    rows = [asynchronous_row(1), asynchronous_row(2, **{"publish/seconds": 0.8, "publish/failed": 1})]
    html = render_page([read_run(write_run(tmp_path / "run", [{"step": 0, "eval/reward": 0.1}, *rows]))])
    page = Reader(html)
    splits = page.data["runs"][0]["splits"]
    assert list(splits) == ["time", "ages", "trainer", "servers", "dropped", "publication"]
    assert splits["ages"] == {"unit": "share", "steps": [1, 2], "parts": {"0 steps": [0.25] * 2, "1 step": [0.75] * 2}}
    assert splits["trainer"]["parts"] == {"works": [1.5] * 2, "waits for samples": [0.5] * 2}
    assert splits["servers"]["parts"] == {"sample": [0.875] * 2, "wait for requests": [0.125] * 2}
    assert splits["dropped"]["parts"] == {"no reward": [2.0] * 2, "stale": [1.0] * 2}
    assert splits["publication"]["parts"] == {"transfer": [0.3] * 2, "commit": [0.1] * 2}
    for text in (
        "staleness per token, mean0.75",
        "staleness, largest1",
        "trainer waits25% of its time",
        "dropped groups6",
        "servers idle12%",
        "publication, median0.6 s",
        "failed publications1 of 2",
        "127.0.0.1:7340",
        "127.0.0.1:8331",
    ):
        assert text in page.text
    assert html.count('<figure class="split"') == 6


def test_a_run_in_one_process_has_no_section_about_servers(full):
    page = Reader(render_page([read_run(full)]))
    assert list(page.data["runs"][0]["splits"]) == ["time"]
    assert "Sampling and servers" not in page.text


def test_a_run_without_dropped_groups_says_so(tmp_path):
    row = asynchronous_row(1, **{"dropped/no_reward": 0.0, "stale_prompts": 0})
    page = Reader(render_page([read_run(write_run(tmp_path / "run", [row]))]))
    assert "No group was dropped." in page.text


def test_text_of_a_run_is_text_on_the_page(full):
    html = render_page([read_run(full)])
    page = Reader(html)
    assert " ".join(NASTY.split()) in page.text
    assert page.text.count("onerror") >= 4, "option, decision, environment, prompt and completion"
    assert "<img" not in html
    assert html.count("</script>") == 2
    assert [one for one in page.attributes if one[1].startswith("on")] == []


def test_a_token_has_its_gap_as_colour_and_title(full):
    html = render_page([read_run(full)])
    assert '<span class="t0" title="log-probability -0.500, trainer -0.500, gap +0.000">a</span>' in html
    assert '<span class="t3" title="log-probability -0.500, trainer -1.000, gap +0.500">€</span>' in html
    assert '<span class="t5" title="log-probability -1.000, trainer -3.000, gap +2.000">b</span>' in html
    assert "mean gap 0.62" in html


def test_tokens_without_a_gap_have_no_colour_beside_others_with_one(full):
    known, unknown = sample_line(), sample_line(trainer_logprobs=[])
    (full / "trajectories/step-00000001.jsonl").write_text(known)
    (full / "trajectories/step-00000003.jsonl").write_text(unknown)
    html = render_page([read_run(full)])
    assert 'data-colours="gap"' in html
    assert '<span class="t0" title="log-probability -1.000">b</span>' in html
    (full / "trajectories/step-00000001.jsonl").write_text(unknown)
    html = render_page([read_run(full)])
    assert 'data-colours="surprise"' in html
    assert '<span class="t2" title="log-probability -1.000">b</span>' in html


def test_tokens_without_text_are_shown_and_shift_no_others(full):
    """Two versions and a turn of the environment, with tokens that have no text in the first segment."""
    line = sample_line(
        segments=[{"text": t, "version": v} for t, v in (("p", None), ("ab", 4), ("c", 5), ("tool", None), ("d", 5))],
        token_ids=[7, 1, 2, 3, 4, 5, 8, 6],
        loss_mask=[0, 1, 1, 1, 1, 1, 0, 1],
        logprobs=[0.0, -0.1, -0.2, -0.3, -0.4, -0.5, 0.0, -0.6],
        versions=[-1, 4, 4, 4, 4, 5, -1, 5],
        pieces=[["", 1], ["a", 1], ["", 1], ["b", 1], ["c", 1], ["d", 1]],
        trainer_logprobs=[],
    )
    for name in ("1", "3"):
        (full / f"trajectories/step-0000000{name}.jsonl").write_text(line)
    html = render_page([read_run(full)])
    found = re.findall(r'title="log-probability -(0.\d)00, version (\d)">(.)<', html)
    assert found[:6] == [(f"0.{n}", v, text) for n, v, text in zip("123456", "444455", "∅a∅bcd", strict=True)]
    assert html.index(">c<") < html.index("tool") < html.index(">d<")


def test_planned_and_measured_timelines_have_one_scale(full):
    html = render_page([read_run(full)])
    planned, measured = re.findall(r'<div class="axis">(.*?)</div>', html)
    assert planned == measured
    assert planned.count("<span") == 6, "0, 1000, ... 5000 ms"


def test_a_profiled_step_shows_its_pipeline_if_no_other_was_recorded(full):
    recorded = (full / "pipeline-actor.json").rename(full / "profile/step-000002/pipeline-actor.json")
    page = Reader(render_page([read_run(full)]))
    assert "actor, while profiled: GPipe, optimizer step 2, 1 micro-batch" in page.text
    (full / "pipeline-actor.json").write_text(recorded.read_text())
    assert "while profiled: GPipe" not in Reader(render_page([read_run(full)])).text


def test_steps_that_a_profiler_slowed_do_not_count_for_the_mean_speed(tmp_path):
    rows = [step_row(1, profiled=1, tokens_per_second=1.0), step_row(2), step_row(3, loss="NaN")]
    page = Reader(render_page([read_run(write_run(tmp_path / "run", rows))]))
    assert "tokens/s, mean500" in page.text
    assert "a profiler slowed step 1;" in page.text
    assert "lossnot finite" in page.text
    page = Reader(render_page([read_run(write_run(tmp_path / "run", rows[:1]))]))
    assert "tokens/s, mean1" in page.text
    assert "slowed step 1; the mean of tokens/s includes profiled steps, because there are no others." in page.text


def test_held_out_rewards_of_several_samples_are_shown(tmp_path):
    rows = [step_row(1, **{"eval/reward_avg@4": 0.5, "eval/pass@4": 0.75})]
    page = Reader(render_page([read_run(write_run(tmp_path / "run", rows))]))
    assert "held-out reward avg@40.5" in page.text
    assert "held-out pass@40.75" in page.text


def test_runs_share_charts_and_differing_options_are_marked(tmp_path, full):
    other = write_run(tmp_path / "demo" / "other", config="algorithm: grpo\nactor: {backend: 'archon:p2', lr: 1.0}\n")
    page = Reader(render_page(read_runs([full, other])))
    assert [run["name"] for run in page.data["runs"]] == ["demo/full", "demo/other"]
    metrics = [panel["metric"] for panel in page.data["panels"]]
    assert metrics.count("reward") == 1
    assert "only differences" in page.text
    assert "demo/fulldemo/otherstatestopped after step 3;" in page.text, "a column for each run"
    html = render_page(read_runs([full, other]))
    assert re.search(r'<tr class="marked"><td>actor.lr</td><td>0.5</td><td>1.0</td></tr>', html)
    assert "<tr><td>actor.backend</td>" in html


def test_many_runs_have_a_row_each_in_the_summary(tmp_path):
    folders = [write_run(tmp_path / "demo" / f"r{n}") for n in range(7)]
    few, many = (Reader(render_page(read_runs(some))).text for some in (folders[:6], folders))
    assert "demo/r0demo/r1demo/r2demo/r3demo/r4demo/r5state" in few
    assert "statestepsrewardloss" in many
    assert "demo/r6finished3 of 3" in many


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path):
    runs = read_runs([write_run(tmp_path / place / "demo" / "grpo") for place in "ab"])
    assert [run.name for run in runs] == [str(run.folder) for run in runs]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 1}\nbroken\n{"step": 2}\n', "line 2: found 'broken'"),
        ("config.yaml", "a: [", "cannot parse it"),
        ("config.yaml", "- 1", "found no mapping of options"),
        ("decisions.json", "[1]", "cannot parse it"),
        ("decisions.json", "{", "cannot parse it"),
        ("starts.json", '{"a": 1}', "found damaged content"),
        ("pipeline-actor.json", "{}", "found format None"),
        ("expert_load-actor.jsonl", "[]\n{}\n", "line 1: found '[]'"),
        ("expert_load-actor.jsonl", '{"step": 1, "layers": {}}\n', "line 1: found"),
        ("expert_load-actor.jsonl", '{"step": 1, "layers": {"0": []}}\n', "line 1: found"),
        ("trajectories/step-00000001.jsonl", '{"step": 1}\n', "line 1: found"),
        ("trajectories/step-00000001.jsonl", sample_line(token_ids=[7, 1]), "loss_mask has 5 values, token_ids 2"),
        ("trajectories/step-00000001.jsonl", sample_line(logprobs=[0.0]), "logprobs has 1 values, token_ids 5"),
        ("trajectories/step-00000001.jsonl", sample_line(trainer_logprobs=[0.0]), "trainer_logprobs has 1 values"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(full, name, content, problem):
    (full / name).write_text(content)
    run = read_run(full)
    assert len(run.problems) == 1
    assert problem in run.problems[0]
    page = Reader(render_page([run]))
    assert problem in page.text
    assert "Samples" in page.text


def test_rows_around_damaged_lines_are_shown(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    first, second, third = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text(f'{first}\n{second[:30]}\n{{"step": 2, "loss": null}}\n{third}\n')
    run = read_run(folder)
    assert [row["step"] for row in run.rows] == [1, 3]
    [problem] = run.problems
    assert problem.startswith(f"metrics.jsonl, line 2: found '{second[:30]}'; every line must be")
    assert problem.endswith("(damaged lines in all: 2)")
    report([folder])
    assert f"cannot read {problem}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"run/metrics\.jsonl, line 2: found"):
        report([folder], as_json=True)


def test_a_half_written_last_line_is_skipped(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    run = read_run(folder)
    assert (run.step, run.problems) == (3, ())


def test_a_run_that_has_only_started_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", [])
    (folder / "metrics.jsonl").unlink()
    page = Reader(render_page([read_run(folder)]))
    assert "no step is finished yet" in page.text
    assert "Curves" not in page.text


@pytest.mark.parametrize(
    ("ending", "error", "text"),
    [
        ("finished", "", "finished"),
        ("interrupted", "", "interrupted after step 2"),
        ("failed", "actor.lr: found -1\nmore", "failed after step 2: actor.lr: found -1"),
        (None, "", "stopped after step 2; its process left no record of why"),
    ],
)
def test_the_state_says_how_a_run_ended(tmp_path, ending, error, text):
    folder = write_run(tmp_path / "run", [step_row(1), step_row(2)])
    start = Start("2026-01-01T00:00:00+00:00", ended="2026-01-01T01:00:00+00:00", ending=ending, error=error)
    (folder / "starts.json").write_text(render_starts([start]))
    assert read_run(folder).state.text == text
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert read_run(folder).state.kind == "running"


def test_a_killed_and_resumed_run_lists_both_starts(tmp_path):
    folder = write_run(tmp_path / "run")
    killed = Start("2026-01-01T00:00:00+00:00")
    resumed = Start("2026-01-01T01:00:00+00:00", 2, ended="2026-01-01T02:00:00+00:00", ending="finished")
    (folder / "starts.json").write_text(render_starts([killed, resumed]))
    text = Reader(render_page([read_run(folder)])).text
    assert "start 12026-01-01T00:00:00+00:00, new; left no record of its end" in text
    assert "start 22026-01-01T01:00:00+00:00, from step 2; finished 2026-01-01T02:00:00+00:00" in text


def test_the_command_writes_the_page_into_the_run_folder_or_where_it_is_told_to(tmp_path, monkeypatch, capsys):
    one, two = write_run(tmp_path / "demo" / "one"), write_run(tmp_path / "demo" / "two")
    report([one])
    assert "wrote" in (printed := capsys.readouterr()).err
    assert len(printed.out.splitlines()) == 4
    assert (one / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    monkeypatch.chdir(tmp_path)
    report([one, two])
    assert "demo/two" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=r"--html: found .*, which cannot be written"):
        report([one], html=tmp_path / "absent" / "page.html")
    with pytest.raises(ConfigError, match="--json: found with several runs"):
        report([one, two], as_json=True)


def test_long_completions_and_prompts_are_cut(full):
    n = 5000
    line = sample_line(
        pieces=[["x", 1]] * n,
        segments=[{"text": "p" * 9000, "version": None}, {"text": "x" * n, "version": 1}],
        token_ids=[0] * (n + 1),
        loss_mask=[0, *[1] * n],
        logprobs=[-1.0] * (n + 1),
        versions=[-1, *[1] * n],
        trainer_logprobs=[-1.0] * (n + 1),
    )
    (full / "trajectories/step-00000001.jsonl").write_text(line)
    html = render_page([read_run(full)])
    assert "4400 more tokens" in html
    assert "5000 more" in html
    assert html.count('class="t0" title') < 700
