"""Style sheet of the pages in a dump: light and dark, no font or file from elsewhere."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #fbfbfa; --card: #ffffff; --ink: #1d2129; --soft: #667085; --line: #e3e5e8;
  --code: #f4f4f2; --link: #2457a6; --add: #e2f5e6; --add-ink: #14532d; --del: #fde7e7;
  --del-ink: #7f1d1d; --forward: #4c83c3; --backward: #d0716f; --update: #4c9f70;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #14161a; --card: #1c1f25; --ink: #e6e8eb; --soft: #98a2b3; --line: #2e333b;
    --code: #171a1f; --link: #8ab4f8; --add: #14301d; --add-ink: #a7e3b8; --del: #3a1a1c;
    --del-ink: #f3b4b4; --forward: #6ea3e0; --backward: #e08a88; --update: #6cbf8f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 28px 24px 80px; }
h1 { font-size: 26px; margin: 2px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 12px; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 16px; }
code, pre, .mono { font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.tiles { margin: 22px 0 0; }
.tile, .step, .card {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.tile { padding: 12px 16px; }
.tile b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.card { padding: 14px 16px; }
.steps { list-style: none; margin: 0; padding: 0; }
.step { padding: 14px 18px; margin-bottom: 10px; }
.step.same { opacity: .7; }
.step header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 12px; }
.step .name { font-weight: 600; font-size: 16px; }
.badge {
  border: 1px solid var(--line); border-radius: 99px; padding: 0 9px; font-size: 12px;
  color: var(--soft);
}
.figures { display: flex; flex-wrap: wrap; gap: 6px 34px; margin-top: 8px; }
.figures div { min-width: 110px; }
.figures span { display: block; color: var(--soft); font-size: 12px; }
.figures em { color: var(--soft); font-style: normal; font-size: 13px; margin-left: 6px; }
.figures, td, .mono { font-variant-numeric: tabular-nums; }
.ops { margin-top: 8px; font-size: 13px; }
.ops code { margin-right: 12px; white-space: nowrap; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--link); }
pre, .diff, .drawing {
  background: var(--code); border: 1px solid var(--line); border-radius: 8px; overflow: auto;
  margin: 10px 0 0; padding: 10px 0; max-height: 560px;
}
pre { padding: 12px 14px; }
.diff div { white-space: pre; padding: 0 14px; width: max-content; min-width: 100%; }
.diff .add { background: var(--add); color: var(--add-ink); }
.diff .del { background: var(--del); color: var(--del-ink); }
.diff .hunk, .diff .more { color: var(--soft); padding-top: 8px; padding-bottom: 4px; }
.drawing { background: #ffffff; padding: 12px; text-align: center; max-height: 800px; }
.drawing svg { max-width: none; }
.scroll {
  overflow: auto; max-height: 620px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px;
}
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th {
  position: sticky; top: 0; background: var(--card); text-align: left; font-weight: 600;
  white-space: nowrap; box-shadow: inset 0 -1px var(--line);
}
th, td { padding: 7px 14px; }
td { border-top: 1px solid var(--line); }
td.number, th.number { text-align: right; white-space: nowrap; }
table.sortable th { cursor: pointer; user-select: none; }
th[data-order="1"]::after { content: " \\2191"; }
th[data-order="-1"]::after { content: " \\2193"; }
input[type=search] {
  font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 6px 12px; width: 320px; max-width: 100%; margin: 0 0 10px;
}
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); }
.legend i {
  display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px;
}
.chart { position: relative; }
#curve { width: 100%; height: auto; display: block; }
#curve text { font: 12px system-ui, sans-serif; fill: var(--soft); }
#curve .tick { text-anchor: end; }
#curve .axis { text-anchor: middle; }
#curve .grid { stroke: var(--line); }
#curve .area { fill: var(--soft); fill-opacity: .75; }
#curve .forward, .legend .forward { fill: var(--forward); background: var(--forward); }
#curve .backward, .legend .backward { fill: var(--backward); background: var(--backward); }
#curve .update, .legend .update { fill: var(--update); background: var(--update); }
#curve .held { stroke: var(--ink); stroke-dasharray: 4 4; stroke-opacity: .6; }
#curve .peak { fill: var(--card); stroke: var(--ink); stroke-width: 2; }
#curve .note, #curve .peak-text { fill: var(--ink); }
#curve .peak-text { font-weight: 600; }
#curve .cursor { stroke: var(--ink); stroke-opacity: .5; }
#lanes { width: 100%; height: auto; display: block; }
#lanes text { font: 12px system-ui, sans-serif; fill: var(--soft); }
#lanes .grid { stroke: var(--line); }
#lanes .forward { fill: var(--forward); }
#lanes .backward { fill: var(--backward); }
#lanes .update { fill: var(--update); }
#tip {
  position: absolute; display: none; pointer-events: none; background: var(--card); z-index: 2;
  border: 1px solid var(--line); border-radius: 8px; padding: 6px 10px; font-size: 12.5px;
  box-shadow: 0 4px 14px rgb(0 0 0 / 18%); white-space: pre;
}
"""
