"""The style sheet of the HTML page: system fonts, light and dark, from 320 pixels of width."""

from __future__ import annotations

_DARK = """--ink: #e6e9f0; --faint: #a2acc0; --paper: #11151d; --panel: #1a202b;
  --line: #333c4d; --mark: #ff7b7b; --good: #5cc9b2; --accent: #86b4ec; --row: #202c3f;"""

STYLE = """
:root { --ink: #101828; --faint: #55607a; --paper: #ffffff; --panel: #f5f7fa; --line: #d5dae3; --mark: #c1121f;
  --good: #0c7a68; --accent: #3168ac; --row: #eaf1fa; }
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) { DARK } }
:root[data-theme="dark"] { DARK }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 20px 16px 60px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 4px; padding-top: 16px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 26px 0 8px; }
p { margin: 4px 0 10px; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, monospace; }
.note, .lane > span, figcaption { color: var(--faint); font-size: 13px; }
.bad { color: var(--mark); font-weight: 600; }
.good { color: var(--good); font-weight: 600; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(145px, 1fr)); gap: 8px; margin: 14px 0;
  padding: 0; list-style: none; }
.facts li { background: var(--panel); border-radius: 8px; padding: 8px 12px; }
.facts span { display: block; color: var(--faint); font-size: 12px; }
.facts b { font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
.bars { display: grid; gap: 6px; }
.bar { display: grid; grid-template-columns: minmax(64px, 150px) 1fr 84px; gap: 8px; align-items: center; }
.bar > span { font-size: 13px; overflow-wrap: anywhere; line-height: 1.25; }
.bar > span:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.track { position: relative; display: flex; height: 20px; background: var(--panel); border-radius: 3px; }
.track i { display: block; height: 100%; box-shadow: inset -1px 0 0 var(--paper); }
.track b { position: absolute; top: -3px; bottom: -3px; width: 2px; margin-left: -1px; background: var(--mark); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 8px 0 10px; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: 6px; font-size: 13px; }
.legend i { flex: none; width: 12px; height: 12px; border-radius: 2px; }
.legend .line { width: 2px; height: 16px; border-radius: 0; }
.scroll { overflow-x: auto; margin: 8px 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.scroll.texts th, .scroll.texts td { text-align: left; white-space: normal; overflow-wrap: anywhere;
  vertical-align: top; min-width: 90px; max-width: 520px; }
td.wide { white-space: normal; text-align: left; min-width: 180px; }
tr.marked td { background: var(--row); }
.lane { display: grid; grid-template-columns: 56px 1fr; gap: 8px; align-items: center; margin: 3px 0; }
.lane svg { width: 100%; height: 18px; display: block; background: var(--panel); }
.axis { position: relative; height: 18px; font-size: 12px; color: var(--faint); }
.axis span { position: absolute; border-left: 1px solid var(--line); padding-left: 3px; }
.columns { display: flex; align-items: flex-end; gap: 8px; margin: 10px 0; max-width: 560px; }
.columns div { flex: 1; text-align: center; min-width: 0; }
.columns i { display: block; background: var(--line); border-radius: 3px 3px 0 0; }
.columns .marked i { background: var(--accent); }
.columns em, .columns span { font: 12px/1.4 system-ui, sans-serif; color: var(--faint); display: block; }
.columns .marked em { color: var(--ink); font-weight: 600; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); font-size: 14px; }
@media (max-width: 560px) { .bar { grid-template-columns: 62px 1fr 74px; } .bar > span { font-size: 12px; }
  .bars.long .bar { grid-template-columns: 1fr auto; } .bars.long .track { grid-row: 2; grid-column: 1 / 3; }
  h1 { font-size: 20px; } }
""".replace("DARK", _DARK)
"""``data-theme`` of the root element overrules the preference of the reader's system."""
