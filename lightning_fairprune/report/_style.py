"""The look of the page."""

STYLE = """\
:root { color-scheme: light; --ink: #222; --soft: #666; --line: #ddd; --faint: #f5f5f4; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 58rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
h4 { font-size: .95rem; margin: 1.25rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: #005a8f; }
.verdict { font-size: 1.15rem; line-height: 1.45; margin: .75rem 0 1rem; }
ul.verdict { font-size: 1rem; padding-left: 1.2rem; }
ul.verdict li { margin: .3rem 0; }
.soft, figcaption, footer { color: var(--soft); font-size: .875rem; }
.notes { padding-left: 1.25rem; color: var(--soft); font-size: .875rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; list-style: none; padding: 0; margin: 1rem 0;
  font-size: .9rem; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; }
.box { overflow: auto; max-width: 100%; margin: .75rem 0; border: 1px solid var(--line);
  border-radius: 4px; }
.tall { max-height: 30rem; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; }
th:first-child, .text { text-align: left; }
td.text { white-space: normal; min-width: 6rem; max-width: 16rem; }
tbody th { font-weight: 400; white-space: normal; min-width: 8rem; max-width: 20rem; }
thead th { position: sticky; top: 0; background: var(--faint); vertical-align: bottom;
  white-space: normal; }
tbody tr { border-top: 1px solid var(--line); }
td small { display: block; color: var(--soft); font-size: .86em; }
.lost { color: #a63c00; font-weight: 600; }
.gained { color: #00598c; font-weight: 600; }
.reference { color: var(--soft); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: #005a8f; font-size: .9rem; }
pre { margin: .5rem 0; padding: .6rem; overflow: auto; max-height: 24rem; background: var(--faint);
  border-radius: 4px; font: .8rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: normal; }
dt { font-weight: 600; margin-top: .6rem; }
dd { margin: 0; max-width: 46rem; }
.examples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: .25rem 1.5rem; }
.thumbs { display: flex; flex-wrap: wrap; gap: .25rem; align-content: flex-start; }
.thumbs span { flex-basis: 100%; color: var(--soft); font-size: .8rem; }
.thumbs img { width: 3.4rem; height: 3.4rem; object-fit: contain; background: var(--faint);
  image-rendering: pixelated; }
@media (max-width: 640px) {
  body { padding: 1rem .75rem 3rem; }
  h1 { font-size: 1.35rem; }
  .verdict { font-size: 1.05rem; }
  th, td { padding: .35rem .45rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, summary { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  .box, .tall, pre { overflow: visible; max-height: none; border: 0; }
  pre { white-space: pre-wrap; }
  table { font-size: 7.5pt; }
  th, td { padding: 2pt 4pt; }
  figure, tr, .thumbs { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  thead th { position: static; }
}
"""
