"""The style sheet of the report page: two colours that every kind of colour vision tells apart, light and dark."""

STYLE = """
:root{color-scheme:light dark;--ground:#fcfcfb;--card:#fff;--ink:#0b0b0b;--muted:#52514e;--grid:#dddcd6;
--first:#2a78d6;--second:#c8501e}
@media(prefers-color-scheme:dark){:root{--ground:#161615;--card:#1f1f1d;--ink:#f3f2ee;--muted:#b4b2aa;--grid:#3a3935;
--first:#6aa9f0;--second:#f08a5a}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.6rem;margin:0 0 .3rem;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:0 0 .5rem}h3{font-size:1rem}
section{margin-top:1.2rem;padding:1rem;background:var(--card);border:1px solid var(--grid);border-radius:.6rem}
p{margin:.2rem 0 .7rem;color:var(--muted)}li,td{overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));gap:.8rem;margin:0}
.tiles dt{color:var(--muted);font-size:.85rem}.tiles dd{margin:0;font-size:1.25rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;width:100%}
th,td{padding:.3rem .55rem;text-align:left;border-bottom:1px solid var(--grid);vertical-align:top}
th{color:var(--muted);font-weight:600}
.numbers td{font-variant-numeric:tabular-nums}
.heat td{text-align:center;white-space:nowrap;border:2px solid var(--card);min-width:4rem}
.width{background:color-mix(in srgb,var(--first) calc(var(--share)*.55),transparent)}
.depth{background:color-mix(in srgb,var(--second) calc(var(--share)*.55),transparent)}
figure{margin:.4rem 0 1rem}svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--muted)}svg .label{fill:var(--ink)}
svg .grid{stroke:var(--grid)}svg .mark{stroke:var(--muted);stroke-dasharray:2 3}
svg path{fill:none;stroke-width:2}svg path.first{stroke:var(--first)}
svg path.second{stroke:var(--second);stroke-dasharray:6 4}
svg circle.first{fill:var(--first)}svg circle.second{fill:var(--second)}
.legend{display:flex;flex-wrap:wrap;gap:1.2rem;list-style:none;margin:.2rem 0 0;padding:0;font-size:.85rem}
.legend li::before{content:"";display:inline-block;width:1.4rem;margin-right:.4rem;vertical-align:middle;
border-top:3px solid var(--first)}
.legend li.second::before{border-top:3px dashed var(--second)}
summary{cursor:pointer;color:var(--muted)}
"""
