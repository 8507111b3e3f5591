"""Comparisons of ranks: the odd one is named with its host, its difference and a fix. Pure."""

from __future__ import annotations

import pytest

from archon_core.cluster.clocks import ClockOffset, RoundTrip, compare_clocks, estimate_offset
from archon_core.cluster.facts import RankFacts, compare_versions, sources_of
from archon_core.cluster.links import Link, axes_of, compare_links, ring_rounds
from archon_core.cluster.naming import by_value, majority, name_ranks, spans
from archon_core.cluster.shared_folder import FolderView, compare_folders, look_into
from archon_core.layout import ParallelDims
from archon_core.ranks.ranks import Ranks

HOSTS = ["a", "a", "b", "b"]


def facts(*versions):
    return [RankFacts(rank, HOSTS[rank], "eth0", "cpu", own) for rank, own in enumerate(versions)]


def test_a_version_that_one_rank_has_alone_is_named_with_the_command_that_installs_the_usual_one():
    usual = {"Python": "3.11.2", "torch": "2.13.0+cpu", "plugin moe": "loaded", "sources of archon_moe": "1a"}
    other = {
        **usual,
        "torch": "2.12.1+cpu",
        "archon-tasks": "0.1.0",
        "plugin moe": "failed",
        "sources of archon_moe": "2b",
    }
    by_subject = {finding.subject: finding for finding in compare_versions(facts(usual, usual, usual, other))}
    assert {finding.state for finding in by_subject.values()} == {"failure"}
    assert by_subject["torch"].found == "2.12.1+cpu on rank 3 (b); 2.13.0+cpu on the other 3"
    assert by_subject["torch"].advice == 'on b: pip install "torch==2.13.0"'
    assert by_subject["archon-tasks"].found == "0.1.0 on rank 3 (b); not installed on the other 3"
    assert "pip uninstall archon-tasks" in by_subject["archon-tasks"].advice
    assert by_subject["plugin moe"].found == "failed on rank 3 (b); loaded on the other 3"
    assert "install the same build, or the same commit" in by_subject["sources of archon_moe"].advice
    assert set(by_subject) == {"torch", "archon-tasks", "plugin moe", "sources of archon_moe"}


def test_a_changed_file_changes_the_sources_of_a_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_package" / "inner").mkdir(parents=True)
    file = tmp_path / "some_package" / "inner" / "module.py"
    found = []
    for text in ("a = 1\n", "a = 2\n", "a = 1\n"):
        (tmp_path / "some_package" / "__init__.py").write_text("")
        file.write_text(text)
        found.append(sources_of("some_package"))
    assert found[0] == found[2] != found[1]
    assert sources_of("no_such_package") == ""


def test_without_a_majority_all_versions_are_listed():
    [finding] = compare_versions(facts({"Python": "3.11"}, {"Python": "3.11"}, {"Python": "3.12"}, {"Python": "3.12"}))
    assert finding.found == "3.11 on ranks 0-1 (a); 3.12 on ranks 2-3 (b)"
    assert finding.advice == "install the same versions on all machines"


def test_equal_versions_are_one_line():
    [finding] = compare_versions(facts(*[{"Python": "3.11", "torch": "2.13", "rich": "15"}] * 4))
    assert (finding.state, finding.found) == ("ok", "equal on all ranks: Python 3.11, torch 2.13, 1 more")


def test_the_offset_of_a_clock_comes_from_the_shortest_round_trip():
    # RFC 5905: theta = answered - (sent + received) / 2, and half the round trip bounds the error.
    found = estimate_offset([RoundTrip(100.0, 163.0, 104.0), RoundTrip(200.0, 260.5, 201.0)])
    assert found == ClockOffset(60.0, 0.5)


@pytest.mark.parametrize(
    ("seconds", "named"),
    [
        ((0.0, 0.01, 61.0, 61.02), None),
        ((0.0, 0.0, 0.0, 61.0), "rank 3 (b): 61.000 s ahead of the others"),
        ((0.0, -61.0, -61.0, -61.0), "rank 0 (a): 61.000 s ahead of the others"),
        ((0.0, 0.0, 0.0, -2.0), "rank 3 (b): 2.000 s behind the others"),
    ],
)
def test_the_clock_that_differs_from_the_others_is_named(seconds, named):
    findings = list(compare_clocks([ClockOffset(one, 0.1) for one in seconds], HOSTS))
    assert all(finding.state == "failure" for finding in findings)
    if named is None:  # two against two: the later ones are named, both
        assert [finding.found.partition(":")[0] for finding in findings] == ["ranks 2-3 (b)"]
    else:
        assert [finding.found.startswith(named) for finding in findings] == [True]
        assert "synchronise the clock" in findings[0].advice


def test_clocks_within_the_error_of_the_measurement_agree():
    [finding] = compare_clocks([ClockOffset(), ClockOffset(1.5, 0.6)], HOSTS)
    assert finding.state == "ok"
    [finding] = compare_clocks([ClockOffset(), ClockOffset(-1.5, 0.4)], HOSTS)
    assert "behind rank 0" in finding.found


def test_a_rank_with_another_folder_is_named_with_the_group_that_shares_one():
    usual = FolderView(unseen=(3,))
    findings = list(compare_folders([usual, usual, usual, FolderView(unseen=(0, 1, 2))], HOSTS, "/runs"))
    [finding] = findings
    assert finding.found.startswith("rank 3 (b): another folder than that of the 3 ranks that share /runs")
    assert "mount the same file system as /runs" in finding.advice


def test_ranks_that_cannot_write_or_read_only_some_files_are_named():
    views = [FolderView(), FolderView("[Errno 30] Read-only file system"), FolderView(different=(0,)), FolderView()]
    found = [finding.found for finding in compare_folders(views, HOSTS, "/runs")]
    assert found == [
        "rank 1 (a) cannot write: [Errno 30] Read-only file system",
        "rank 2 (b) does not read what rank 0 (a) wrote in /runs",
    ]
    [finding] = compare_folders([FolderView()] * 4, HOSTS, "/runs")
    assert finding.state == "ok"


def test_every_axis_of_a_layout_is_measured_on_rings_of_its_groups():
    dims = ParallelDims(pp=2, dp_shard=2, tp=3, ep=3)
    assert [axis for axis, _ in axes_of(dims)] == ["pp", "dp_shard", "tp", "edp", "ep"]
    assert axes_of(ParallelDims()) == []
    for groups in (((0, 1),), ((0, 2, 4), (1, 3, 5)), ((0, 1, 2, 3, 4),), ((0, 1, 2, 3), (4, 5, 6, 7))):
        rounds = ring_rounds(groups)
        for pairs in rounds:
            ends = [rank for pair in pairs for rank in pair]
            assert len(ends) == len(set(ends)), "no rank has two links in one round"
        links = [pair for pairs in rounds for pair in pairs]
        assert len(links) == len(set(links)) == sum(len(group) if len(group) > 2 else 1 for group in groups)


def ring(n_ranks, slow, *, axis="dp_shard", latency=5e-5):
    """A ring of links of 10 GB/s, but for those in ``slow``."""
    pairs = [tuple(sorted((rank, (rank + 1) % n_ranks))) for rank in range(n_ranks)]
    return [Link(axis, pair, latency, slow.get(pair, 1e10)) for pair in pairs]


def test_a_rank_whose_links_are_all_slow_is_named_and_else_the_link():
    hosts = [f"n{rank}" for rank in range(6)]
    [finding] = compare_links(ring(6, {(2, 3): 8e8, (3, 4): 9e8}), hosts)
    assert (finding.subject, finding.state) == ("axis dp_shard", "failure")
    assert finding.found == (
        "rank 3 (n3) is slow to all its neighbours: 0.80 GB/s, 50 us; the median of 6 links between hosts is "
        "10.00 GB/s, 50 us"
    )
    [finding] = compare_links(ring(6, {(2, 3): 2.5e9}), hosts)
    assert finding.state == "note"
    assert finding.found.startswith("the link of rank 2 (n2), rank 3 (n3) is slow: 2.50 GB/s")


def test_links_inside_a_host_are_not_compared_with_those_between_hosts():
    hosts = ["a", "a", "a", "b", "b", "b"]
    between = {(2, 3): 1e8, (0, 5): 1e8}
    [finding] = compare_links(ring(6, between), hosts)
    assert finding.state == "ok"
    assert finding.found == "6 links: 0.10 GB/s to 10.00 GB/s, 50 us to 50 us; slowest between ranks 2 and 3"


def test_a_late_link_is_odd_only_beyond_what_a_busy_machine_adds():
    hosts = [f"n{rank}" for rank in range(4)]
    links = ring(4, {})
    late = Link("tp", (0, 1), 9e-4, 1e10)
    assert next(iter(compare_links([*links[1:], late], hosts))).state == "ok"
    late = Link("dp_shard", (0, 1), 2e-2, 1e10)
    [finding] = compare_links([*links[1:], late], hosts)
    assert (finding.state, "20.00 ms" in finding.found) == ("failure", True)


def test_names_are_short():
    assert name_ranks([3, 0, 1, 2], HOSTS) == "ranks 0-1 (a), ranks 2-3 (b)"
    assert spans([]) == ""
    assert majority(["x", "y", "x"]) == "x"
    assert majority(["x", "y"]) is None
    assert by_value(["y", "x", "x"]) == {"x": [1, 2], "y": [0]}


def test_a_folder_that_was_missing_is_removed_with_its_parents(tmp_path):
    (tmp_path / "there").mkdir()
    assert look_into(tmp_path / "there" / "mistyped" / "runs", Ranks()) == [FolderView()]
    assert [*tmp_path.rglob("*")] == [tmp_path / "there"]
