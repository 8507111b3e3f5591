"""The page in a real browser: charts are drawn, controls work, nothing fails, loads or leaves the screen of a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest
from made_runs import NASTY, asynchronous_row, sample_line, step_row, write_run

from archon_report.page import render_page
from archon_report.run import read_runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

LOOK = """
const results = {};
const look = (frame) => {
  const page = frame.contentDocument, view = frame.contentWindow, one = (selector) => page.querySelector(selector);
  const paths = () => one('[data-metric="reward"] svg').querySelectorAll('path').length;
  const ticks = () => [...one('[data-metric="reward"] svg').querySelectorAll('text')].map((t) => t.textContent).join();
  const found = {
    loaded: view.performance.getEntriesByType('resource').length,
    width: page.documentElement.scrollWidth,
    paths: paths(),
    heat: [...page.querySelectorAll('.heat canvas')].map((c) => {
      const data = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      return [c.width, c.height, data.some((v) => v > 0)];
    }),
    prompt: one('.prompt.long').clientHeight,
    axes: [...page.querySelectorAll('.heat .note')].map((note) => note.textContent).slice(0, 2),
    areas: page.querySelectorAll('.split path').length,
  };
  one('.chip').click();
  found.pathsOfOneRun = paths();
  one('.chip').click();
  const before = ticks();
  const axis = one('#axis');
  axis.value = 'seconds';
  axis.dispatchEvent(new view.Event('change'));
  found.axisChanged = before !== ticks();
  const texts = (metric) =>
    [...one(`[data-metric="${metric}"] svg`).querySelectorAll('text')].map((t) => t.textContent);
  found.times = texts('reward').filter((text) => text.endsWith(' h'));
  found.narrow = texts('entropy').filter((text) => text.startsWith('12.'));
  found.zero = texts('clip_fraction').filter((text) => !text.endsWith(' h'));
  const marks = (metric) => texts(metric).filter((text) => !text.endsWith(' h'));
  found.close = [marks('own/count'), marks('own/wait_s')];
  one('[data-metric="own/near"] button').click();
  one('[data-metric="own/wide"] button').click();
  found.log = [marks('own/near'), marks('own/wide')];
  axis.value = 'tokens';
  axis.dispatchEvent(new view.Event('change'));
  found.once = texts('own/once');
  const smooth = one('#smooth');
  smooth.value = '0.9';
  smooth.dispatchEvent(new view.Event('input'));
  found.smoothPaths = paths();
  one('[data-metric="reward"] button').click();
  const box = one('[data-metric="reward"] svg').getBoundingClientRect();
  const at = { clientX: box.left + 60, clientY: box.top + 40 };
  one('[data-metric="reward"] svg').dispatchEvent(new view.PointerEvent('pointermove', at));
  found.tip = one('[data-metric="reward"] .tip').textContent;
  // What a browser dispatches for a tap: the finger leaves when it is lifted.
  const point = (node, types, pointerType) => {
    for (const type of types) node.dispatchEvent(new view.PointerEvent(type, { ...at, pointerType, bubbles: true }));
  };
  const tap = (node) => point(node, ['pointerdown', 'pointerup', 'pointerout', 'pointerleave'], 'touch');
  const shown = () => [...page.querySelectorAll('.tip')].filter((tip) => !tip.hidden).map((tip) => tip.textContent);
  const loss = one('[data-metric="loss"] svg');
  point(one('[data-metric="reward"] svg'), ['pointerout', 'pointerleave'], 'mouse');
  found.left = shown();
  found.tapped = [loss, one('.split svg'), one('.heat canvas')].map((node) => { tap(node); return shown(); });
  tap(one('h1'));
  found.tappedElsewhere = shown();
  point(loss, ['pointerdown', 'pointercancel', 'pointerout', 'pointerleave'], 'touch');
  found.scrolled = shown();
  found.picked = [...page.querySelectorAll('.sample [title]')].slice(0, 2).map((token) => {
    tap(token);
    token.click();
    return one('.sample .picked').textContent;
  });
  const paper = () => view.getComputedStyle(page.body).backgroundColor;
  const light = paper();
  one('#theme').click();
  found.themeChanged = light !== paper();
  const search = one('input[type=search]');
  search.value = 'backend';
  search.dispatchEvent(new view.Event('input'));
  found.options = [...page.querySelectorAll('#options tbody tr')].filter((row) => !row.hidden).length;
  one('[data-differing]').click();
  found.differing = [...page.querySelectorAll('#options tbody tr')].filter((row) => !row.hidden).length;
  page.querySelectorAll('details').forEach((details) => { details.open = true; });
  found.widthOpened = page.documentElement.scrollWidth;
  return found;
};
addEventListener('load', () => {
  for (const frame of document.querySelectorAll('iframe')) results[frame.width] = look(frame);
  const out = document.createElement('pre');
  out.id = 'results';
  out.textContent = JSON.stringify(results);
  document.body.append(out);
});
"""


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """Width of the screen -> what the browser has found, and the messages of its console."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    loads = [{"step": n, "layers": {"0": [1, 2, 3, n], "1": [2, 2, 2, 2]}} for n in range(1, 7)]
    long = "an_option_with_a_name_that_is_too_long_for_the_screen_of_a_phone_" * 2
    one = write_run(
        folder / "demo" / "one",
        [
            step_row(
                step,
                loss="NaN" if step == 7 else 0.5,
                entropy=12.3451 + 1e-5 * step,
                clip_fraction=0.0,
                **{"own/metric": -step, "time/step": 400.0},
                **{"own/count": 20_000_000 + 100 * (step % 2), "own/wait_s": 130.001 + 0.001 * (step % 2)},
                **{"own/near": 100.1 + 0.3 * (step % 2), "own/wide": 1.5 + 70 * (step % 2)},
            )
            for step in range(1, 40)
        ],
        config=f"algorithm: grpo\n{long}: {json.dumps(NASTY)}\nactor: {{backend: 'archon:d1', lr: 0.5}}\n",
    )
    (one / "expert_load-actor.jsonl").write_text("".join(json.dumps(load) + "\n" for load in loads))
    (one / "trajectories").mkdir()
    nasty = {"segments": [{"text": NASTY + "w" * 3000, "version": None}, {"text": NASTY, "version": 1}], "pieces": []}
    pieces = [["a", 1], ["€\n", 2], ["b", 1]]
    (one / "trajectories/step-00000001.jsonl").write_text(sample_line(pieces=pieces))
    (one / "trajectories/step-00000002.jsonl").write_text(sample_line(2, **nasty))
    ahead = [asynchronous_row(1, tokens=20_000_000, **{"own/once": 1.0}), *map(asynchronous_row, (2, 3))]
    two = write_run(folder / "demo" / "two", ahead, config="algorithm: grpo\nactor: {backend: 'archon:d1', lr: 1.0}\n")
    page = html.escape(render_page(read_runs([one, two])))
    frames = "".join(f'<iframe width="{width}" height="900" srcdoc="{page}"></iframe>' for width in (375, 1280))
    wrapper = folder / "wrapper.html"
    wrapper.write_text(f"<!doctype html><body>{frames}<script>{LOOK}</script></body>", encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    profile = f"--user-data-dir={folder / 'profile'}"
    isolated = "--host-resolver-rules=MAP * ~NOTFOUND"
    result = subprocess.run(
        [*command, profile, isolated, "--virtual-time-budget=5000", wrapper.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="results">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found is not None, result.stderr
    return json.loads(html.unescape(found[1])), re.findall(r"CONSOLE.*", result.stderr)


def test_the_console_has_no_message_and_nothing_is_loaded(looked):
    found, console = looked
    assert console == []
    assert [one["loaded"] for one in found.values()] == [0, 0]


def test_nothing_leaves_the_screen_of_a_phone(looked):
    found, _ = looked
    for width in ("375", "1280"):
        assert found[width]["width"] <= int(width)
        assert found[width]["widthOpened"] <= int(width)


def test_a_long_prompt_leaves_room_for_its_completion(looked):
    for one in looked[0].values():
        assert 0 < one["prompt"] <= 140


def test_charts_are_drawn(looked):
    for one in looked[0].values():
        assert one["paths"] == 2
        assert one["areas"] == 6 + 10, "phases of two runs, and five charts of the second"
        assert one["heat"] == [[4, 2, True], [6, 4, True]]
        assert one["axes"] == [
            "Rows: layers 0 to 1, from the top. Columns: experts 0 to 3.",
            "Rows: experts 0 to 3, from the top. Columns: optimizer steps 1 to 6.",
        ]


def test_the_texts_of_an_axis_differ_and_have_round_numbers(looked):
    for one in looked[0].values():
        assert one["times"], "of 39 steps of 400 seconds"
        assert all(re.fullmatch(r"\d h", text) for text in one["times"])
        assert len(one["narrow"]) > 1
        assert len(set(one["narrow"])) == len(one["narrow"])
        assert one["zero"] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"], "no negative shares"


def test_the_texts_of_an_axis_have_a_unit_that_suits_their_distance(looked):
    for one in looked[0].values():
        count, wait = one["close"]
        assert count == ["20000.00k", "20000.02k", "20000.04k", "20000.06k", "20000.08k", "20000.10k"]
        assert wait == ["130.0010 s", "130.0012 s", "130.0014 s", "130.0016 s", "130.0018 s", "130.0020 s"]
        assert {"18M", "20M", "22M"} <= set(one["once"]), "around the tokens of the only step"


def test_the_texts_of_a_logarithmic_axis_differ(looked):
    for one in looked[0].values():
        assert one["log"] == [["100.1", "100.2", "100.3", "100.4"], ["2", "5", "10", "20", "50"]]


def test_a_tap_shows_values(looked):
    for one in looked[0].values():
        chart, areas, heat = one["tapped"]
        assert [len(tips) for tips in one["tapped"]] == [1, 1, 1], "a tap hides what the last one has shown"
        assert all("step " in tips[0] for tips in (chart, areas))
        assert "x the mean" in heat[0]
        assert one["tappedElsewhere"] == []
        assert one["picked"] == [
            '"a": log-probability -0.500, trainer -0.500, gap +0.000',
            '"€↵": log-probability -0.500, trainer -1.000, gap +0.500',
        ]


def test_a_mouse_that_leaves_and_a_finger_that_scrolls_hide_the_values(looked):
    for one in looked[0].values():
        assert one["left"] == one["scrolled"] == []


def test_controls_change_what_is_shown(looked):
    for one in looked[0].values():
        assert one["pathsOfOneRun"] == 1
        assert one["axisChanged"]
        assert one["smoothPaths"] == 4, "raw and smoothed"
        assert one["tip"].count("step ") == 2
        assert one["themeChanged"]
        assert (one["options"], one["differing"]) == (1, 0)
