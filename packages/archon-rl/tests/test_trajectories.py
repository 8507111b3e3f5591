"""``rollout.dump_to_file`` and ``archon trajectories``: what a run writes is what the command shows."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import chain

import pytest
from run_results import rows

from archon_core.contracts.workflows import NO_VERSION, Trajectory
from archon_core.errors import ConfigError, DataError
from archon_core.run_files.trajectories import Segment, read_step, steps_in
from archon_rl.collector.sampling import NOT_SELECTED
from archon_rl.trajectories_cli import describe, has_colours, trajectories
from archon_rl.trajectory_files import line_of, pieces_of, write_step

LETTERS = "abcdefghij"
TURNS = Trajectory(
    (0, 1, 2, 3, 4, 5),
    (False, True, True, True, False, True),
    (0.0, -0.5, -0.25, -1.0, 0.0, -2.0),
    (NO_VERSION, 3, 3, 4, NO_VERSION, 4),
    reward=0.5,
    truncated=True,
    metadata={"turns": 2},
)


def decode(ids):
    return "".join(LETTERS[token] for token in ids)


def line(reward=0.5, step=7, group=40, **changes):
    one = Trajectory(**{**{f: getattr(TURNS, f) for f in TURNS.__dataclass_fields__}, "reward": reward})
    return line_of(one, decode, step=step, group=group, sample=1, **changes)


def test_segments_are_tokens_of_one_version_or_of_none():
    assert line().segments == (
        Segment("a"),
        Segment("bc", 3),
        Segment("d", 4),
        Segment("e"),
        Segment("f", 4),
    )
    assert line().weights == (3, 4)


def test_a_file_gives_its_lines_back(tmp_path):
    lines = [line(), line(1.0, dropped="it is stale")]
    write_step(tmp_path, 7, lines)
    assert list(read_step(steps_in(tmp_path)[7])) == lines


def test_pieces_are_the_fewest_tokens_that_decode_to_whole_characters():
    euro = "€".encode()

    def decode_bytes(ids):
        return bytes(ids).decode(errors="replace")

    ids = (*b"p", *b"a", *euro, *b"b", euro[0])
    one = Trajectory(ids, (False, *[True] * 6), (0.0,) * 7, (NO_VERSION, *[1] * 6), reward=0.0)
    assert pieces_of(one, decode_bytes) == (("a", 1), ("€", 3), ("b", 1), ("\ufffd", 1))


def test_log_probabilities_of_the_trainer_stand_beside_those_of_the_sampler(tmp_path):
    one = line(trainer_logprobs=[0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
    assert one.trainer_logprobs == (0.0, -1.0, -2.0, -3.0, 0.0, -5.0)
    assert one.pieces == (("b", 1), ("c", 1), ("d", 1), ("f", 1))
    write_step(tmp_path, 7, [one])
    assert list(read_step(steps_in(tmp_path)[7])) == [one]
    with pytest.raises(ValueError, match="zip"):
        line(trainer_logprobs=[0.0])


def test_lines_of_earlier_versions_can_be_read(tmp_path):
    old = {name: value for name, value in asdict(line()).items() if name not in ("pieces", "trainer_logprobs")}
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories/step-00000007.jsonl").write_text(json.dumps(old) + "\n")
    assert list(read_step(steps_in(tmp_path)[7])) == [line()]


def test_a_resumed_run_leaves_no_file_of_a_later_step(tmp_path):
    for step in (1, 2, 3, 2):
        write_step(tmp_path, step, [line(step=step)])
    assert list(steps_in(tmp_path)) == [1, 2]


def test_a_damaged_line_is_named(tmp_path):
    write_step(tmp_path, 1, [line(step=1)])
    file = steps_in(tmp_path)[1]
    short = json.dumps({**asdict(line()), "versions": [3]})
    for wrong in ("{", "[]", "{}", json.dumps({**asdict(line()), "reward": "x"}), short):
        file.write_text(json.dumps(asdict(line())) + "\n" + wrong + "\n")
        with pytest.raises(DataError, match=r"step-00000001\.jsonl, line 2: found .*dump_to_file=true wrote"):
            list(read_step(file))


def shown(folder, capsys, **options):
    trajectories(
        folder, **{"step": None, "min_reward": None, "max_reward": None, "limit": 10, "as_json": False, **options}
    )
    return capsys.readouterr().out


def test_the_command_shows_the_last_step_with_versions_in_brackets_where_there_are_no_colours(tmp_path, capsys):
    write_step(tmp_path, 6, [line(step=6)])
    write_step(tmp_path, 7, [line()])
    assert shown(tmp_path, capsys).splitlines()[:3] == [
        "step 7  group 40  sample 1  reward 0.5  versions 3 4  (cut at the length limit)",
        "    a => [3]bc[4]de[4]f",
        "",
    ]
    assert shown(tmp_path, capsys, step=6).startswith("step 6  ")


def test_a_terminal_gets_colours_instead_of_brackets():
    head, body = describe(line(), coloured=True)
    assert body.plain == "    abcdef"
    styles = {body.plain[span.start : span.end]: str(span.style) for span in body.spans if span.style}
    assert styles == {"a": "dim", "bc": "yellow", "d": "green", "e": "dim", "f": "green"}
    assert {(head.plain[span.start : span.end], str(span.style)) for span in head.spans} >= {
        (" 3", "yellow"),
        (" 4", "green"),
    }


def test_no_color_turns_colours_off_in_a_terminal_too(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours()


def test_control_characters_of_a_completion_do_not_reach_the_terminal(tmp_path, capsys):
    one = line()
    write_step(tmp_path, 7, [replace(one, segments=(Segment("a\x1b[2Jb\r"), Segment("c\nd\x07", 3)))])
    assert shown(tmp_path, capsys).splitlines()[1:3] == ["    a\\x1b[2Jb\\r => c", "    d\\x07"]


def test_filters_choose_by_reward_and_limit(tmp_path, capsys):
    write_step(tmp_path, 7, [line(reward) for reward in (0.0, 0.25, 0.5, 1.0)])

    def rewards(**options):
        return [json.loads(text)["reward"] for text in shown(tmp_path, capsys, as_json=True, **options).splitlines()]

    assert rewards() == [0.0, 0.25, 0.5, 1.0]
    assert rewards(min_reward=0.25, max_reward=0.5) == [0.25, 0.5]
    assert rewards(limit=2) == [0.0, 0.25]
    assert rewards(limit=0, min_reward=1.0) == [1.0]
    assert "1 of 4 trajectories of " in shown(tmp_path, capsys, limit=1)
    assert shown(tmp_path, capsys, min_reward=2.0).startswith("0 trajectories of ")


def test_dropped_trajectories_say_why(tmp_path, capsys):
    write_step(tmp_path, 7, [line(dropped="the algorithm did not select it")])
    assert "dropped: the algorithm did not select it)" in shown(tmp_path, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 4}, r"--step: found 4; .* has the steps 1-3, 7; choose one of them"),
        ({"limit": -1}, r"--limit: found -1; allowed are numbers from 0"),
        ({"min_reward": 1.0, "max_reward": 0.5}, r"--min-reward: found 1, above --max-reward 0\.5; lower it"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, options, message):
    for step in (1, 2, 3, 7):
        write_step(tmp_path, step, [line(step=step)])
    with pytest.raises(ConfigError, match=message):
        shown(tmp_path, capsys, **options)


def test_a_folder_without_trajectories_is_refused(tmp_path, capsys):
    with pytest.raises(ConfigError, match=r"found no trajectories folder with files; .*dump_to_file=true"):
        shown(tmp_path, capsys)
    with pytest.raises(ConfigError, match="found no such folder"):
        shown(tmp_path / "absent", capsys)


@pytest.mark.parametrize(
    "workflow", [(), ("workflow=multi_turn", "multi_turn.feedback='+'")], ids=["rlvr", "multi_turn"]
)
def test_a_run_writes_what_it_trains_on_and_what_it_does_not_select(run, workflow):
    folder = run("rollout.dump_to_file=true", "actor.dynamic_sampling=true", "trainer.max_steps=3", *workflow)
    found = {step: list(read_step(file)) for step, file in steps_in(folder.path).items()}
    metrics = {row["step"]: row for row in rows(folder) if "tokens" in row}
    assert list(found) == [1, 2, 3]
    for step, lines in found.items():
        assert {one.step for one in lines} == {step}
        assert sum(one.reward for one in lines) / len(lines) == pytest.approx(metrics[step]["reward"])
        assert sum(len(one.token_ids) for one in lines) == metrics[step]["tokens"]
        trained = [one for one in lines if not one.dropped]
        assert len(trained) / len(lines) == pytest.approx(metrics[step]["selected"])
        for one in lines:
            assert len(one.token_ids) == len(one.loss_mask) == len(one.logprobs) == len(one.versions)
            assert one.segments[0].text.endswith("=")
        detailed = [one for one in lines if one.trainer_logprobs]
        assert detailed
        assert not [one.dropped for one in detailed if one.dropped]
        for one in detailed:
            assert one.trainer_logprobs == pytest.approx(one.logprobs, abs=1e-5), (
                "the sampler has the trainer's weights"
            )
    numbers = [sorted({one.group for one in lines}) for lines in found.values()]
    assert [*chain(*numbers)] == list(range(sum(map(len, numbers))))
    assert {one.dropped for one in chain(*found.values())} == {"", NOT_SELECTED}


def test_a_run_without_the_option_writes_no_trajectories(run):
    assert not steps_in(run("trainer.max_steps=1").path)
