"""Style of a page for screens of any width and for paper."""

STYLE = """
:root{color-scheme:light dark;--paper:#f4f6f4;--card:#fff;--ink:#17211d;--soft:#51605a;--edge:#d5ddd8;--link:#0b5f49;
--s1:#0b6b50;--s2:#b0480c;--s3:#3554b4;--s4:#86348c;--s5:#7a5a00;--s6:#a3144d;--s7:#00677f;--s8:#4d4d4d;--hit:15,110,82;--miss:196,84,20;
--bad:#8e1c0c;--bad-b:#fbe5e1;--mid:#684300;--mid-b:#fdf0d2;--good:#17563c;--good-b:#e0efe7;--sim:#4a3a86;--sim-b:#f1eefb}
@media (prefers-color-scheme:dark){:root{--paper:#0f1412;--card:#171e1b;--ink:#e5ece8;--soft:#a4b2ab;--edge:#33403a;
--link:#7fd6b5;--s1:#4fc99f;--s2:#f29a5f;--s3:#93b2ff;--s4:#dc9de6;--s5:#e0bd4f;--s6:#ff93b8;--s7:#6fd0ea;--s8:#c2c9c6;--hit:54,160,124;--miss:214,112,52;
--bad:#ffb4a6;--bad-b:#43190f;--mid:#ffd98a;--mid-b:#3d2e0c;--good:#9be0bf;--good-b:#153327;--sim:#cbbdff;--sim-b:#231d3d}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,"Segoe UI",Roboto,sans-serif;
overflow-wrap:anywhere}
a{color:var(--link)}
:focus-visible{outline:3px solid var(--s3);outline-offset:2px;border-radius:3px}
.skip{position:absolute;left:-999px}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem;z-index:9}
header,.layout,footer{max-width:84rem;margin:0 auto;padding:0 1rem}
header{padding-top:1.5rem}
.brand{font-weight:700;letter-spacing:.06em;color:var(--s1);font-size:.9rem}
h1{font-size:clamp(1.35rem,1rem + 2vw,2rem);line-height:1.2;margin:.1rem 0 .3rem}
header p{color:var(--soft);margin:0 0 1rem}
h2{font-size:1.3rem;line-height:1.25;margin:0 0 .75rem}
h3{font-size:1rem;margin:0 0 .5rem}
.layout{display:grid;gap:1.25rem;grid-template-columns:minmax(0,1fr)}
nav ol{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.15rem .9rem;font-size:.9rem}
nav a{display:inline-block;padding:.2rem 0}
section{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:1rem;
margin:0 0 1.25rem;min-width:0}
section>p{max-width:75ch}
p{margin:0 0 .8rem}
.lead{font-size:1.12rem;line-height:1.5}
.small,small,.note,caption{font-size:.85rem;color:var(--soft)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.75rem;margin:0 0 1rem}
.tiles>div{border:1px solid var(--edge);border-radius:8px;padding:.6rem .75rem}
.tiles dt{font-size:.85rem;color:var(--soft)}
.tiles dd{margin:0;font-size:1.5rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.25}
.tiles dd.note{font-size:.82rem;font-weight:400;line-height:1.35}
.scroll{overflow-x:auto;margin:0 0 1rem;max-width:100%}
.scroll.tall{max-height:34rem;overflow-y:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;padding:0 0 .4rem}
.hush{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
table.plain{width:100%}table.few{width:auto;min-width:min(100%,24rem)}
.prose tbody th{min-width:9rem}
th,td{padding:.3rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--edge);font-weight:400;
overflow-wrap:break-word;min-width:3.2rem;max-width:30rem}
th bdi[title],td bdi[title]{overflow-wrap:anywhere}
code{font:.92em ui-monospace,monospace}
thead th{font-weight:600;color:var(--soft);vertical-align:bottom;overflow-wrap:normal}
.tall thead th{position:sticky;top:0;background:var(--card);z-index:1}
.n{text-align:right}
td.n small,th.n small{display:block;white-space:nowrap}
th button{all:unset;cursor:pointer;text-decoration:underline dotted}
th button:focus-visible{outline:3px solid var(--s3)}
.bar{display:block;position:relative;height:5px;min-width:4.5rem;margin-top:.2rem;background:var(--edge);border-radius:3px}
.bar i{position:absolute;top:0;bottom:0;min-width:2px;background:var(--s1);opacity:.55;border-radius:3px}
.bar b{position:absolute;top:-3px;width:2px;height:11px;background:var(--ink)}
.grade{display:inline-block;border-radius:4px;padding:0 .45rem;font-weight:600;white-space:nowrap}
.critical{color:var(--bad);background:var(--bad-b)}
.theoretical{color:var(--mid);background:var(--mid-b)}
.negligible{color:var(--good);background:var(--good-b)}
.notice{border:1px solid;border-left-width:6px;border-radius:8px;padding:.8rem 1rem;margin:0 0 1rem;min-width:0}
.simulation{border-color:var(--sim);background:var(--sim-b)}.simulation>h3{color:var(--sim)}
.simulation>.tall thead th{background:var(--sim-b)}
.warning{border-color:var(--bad);background:var(--bad-b)}.warning>h3{color:var(--bad)}
.notice .chart{background:var(--card);padding:.75rem;border-radius:8px}
.notice .small,.notice small,.notice caption{color:var(--ink)}
.chart small,.chart caption,.chart .note{color:var(--soft)}
.chart{margin:0 0 1.25rem;min-width:0}
figcaption{font-weight:600;margin:0 0 .35rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:0 0 .4rem;padding:0;font-size:.88rem}
.legend svg{width:28px;height:10px;margin-right:.4rem;vertical-align:middle}
.frame{display:grid;grid-template-columns:auto minmax(0,1fr);grid-template-rows:auto 15rem auto auto}
.y-title{grid-area:1/1/2/3;font-size:.82rem;color:var(--soft)}
.y{grid-area:2/1;position:relative;width:3.2rem;margin:.6rem 0}
.y span{position:absolute;right:.5rem;transform:translateY(50%);font-size:.82rem;color:var(--soft);white-space:nowrap}
.plot{grid-area:2/2;position:relative;margin:.6rem .6rem .6rem 0;border-bottom:1px solid var(--soft);
border-left:1px solid var(--soft);touch-action:pan-y}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.x{grid-area:3/2;position:relative;height:1.1rem;margin-right:.6rem}
.x span{position:absolute;white-space:nowrap;transform:translateX(-50%);font-size:.82rem;color:var(--soft)}
.x-title{grid-area:4/2;font-size:.82rem;color:var(--soft);text-align:center}
.lanes{grid-template-rows:0 auto auto auto;grid-template-columns:8.5rem minmax(0,1fr)}
.lanes .plot,.lanes .y{min-height:8rem}
.lanes .y{width:auto}
.grid{stroke:var(--edge);vector-effect:non-scaling-stroke;stroke-width:1}
.line{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke;stroke-linejoin:round}
.dots{fill:none;stroke:currentColor;stroke-width:6;stroke-linecap:round;vector-effect:non-scaling-stroke}
.lanes .dots{stroke-width:10}
.band{fill:currentColor;opacity:.2}
.lanes .band{opacity:.45}
.s1{color:var(--s1)}.s2{color:var(--s2)}.s3{color:var(--s3)}.s4{color:var(--s4)}
.s5{color:var(--s5)}.s6{color:var(--s6)}.s7{color:var(--s7)}.s8{color:var(--s8)}
.legend span{color:var(--ink)}
.s2 .line{stroke-dasharray:7 4}.s3 .line{stroke-dasharray:2 4;stroke-linecap:round}.s4 .line{stroke-dasharray:10 3 2 3}
.s5 .line{stroke-dasharray:1 3;stroke-linecap:round}.s6 .line{stroke-dasharray:12 6}
.cursor{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:var(--ink);pointer-events:none}
.readout{margin:.35rem 0;min-height:1.5em;font-size:.9rem;font-variant-numeric:tabular-nums}
details{margin:0 0 1rem}
summary{cursor:pointer;color:var(--link);padding:.15rem 0}
.data{margin:0;font-size:.9rem}
.matrix{border-collapse:separate;border-spacing:2px}
.matrix td{background:rgba(var(--miss),calc(var(--s)*.62));text-align:right;border:0;border-radius:3px;min-width:2.6rem;
padding:.25rem .4rem}
.matrix td.hit{background:rgba(var(--hit),calc(var(--s)*.55))}
.matrix.one td{background:rgba(var(--hit),calc(var(--s)*.55))}
.matrix th{border:0;padding:.2rem .4rem;min-width:0;max-width:12rem}
.matrix tbody th{text-align:right;vertical-align:middle}
.matrix.wide thead th:not(.corner) span{writing-mode:vertical-rl;transform:rotate(180deg);
max-height:9rem;overflow:hidden}
.map{grid-template-rows:auto auto auto auto;grid-template-columns:0 minmax(0,1fr)}
.map .plot{height:clamp(12rem,40vw,26rem);margin:.3rem 0;border:1px solid var(--edge)}
.map img{position:absolute;inset:0;width:100%;height:100%;image-rendering:pixelated}
.map .cursor{background:none;border:2px solid var(--ink);bottom:auto;margin:0;min-width:6px;min-height:6px}
footer{color:var(--soft);font-size:.85rem;padding-bottom:2rem}
.live{position:sticky;top:0;z-index:5;display:flex;gap:1rem;align-items:center;justify-content:space-between;
max-width:84rem;margin:0 auto 1rem;padding:.4rem 1rem;background:var(--good-b);color:var(--good);border-radius:8px}
.live p{margin:0}.live button{flex:none}.live.lost{background:var(--bad-b);color:var(--bad)}
.live button{font:inherit;color:inherit;background:var(--card);border:1px solid currentColor;border-radius:6px;
padding:.15rem .7rem}
@media (max-width:42rem){.prose,.prose tbody,.prose tr,.prose th,.prose td{display:block;max-width:none;padding:.1rem 0}
.prose caption{display:block}.prose thead{display:none}
.prose tr{border-bottom:1px solid var(--edge);padding:.5rem 0}.prose th,.prose td{border:0}
.prose tbody th{font-weight:600}}
@media (min-width:64rem){.layout{grid-template-columns:13.5rem minmax(0,1fr)}
nav{position:sticky;top:1rem;align-self:start}nav ol{display:block}nav li{margin:.1rem 0}
section{padding:1.25rem 1.5rem}.pair{display:grid}}
@media (min-width:90rem){.pairs{columns:2}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--edge:#bbb;color-scheme:light}
body{font-size:10pt}nav,.skip,.live,details.data,.readout{display:none}.layout{display:block}
section{border:0;padding:0;margin:0 0 1.2rem}h2{break-after:avoid;border-bottom:1px solid #999}
.chart,.tiles,tr,.notice h3{break-inside:avoid}.scroll,.scroll.tall{overflow:visible;max-height:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}.frame{grid-template-rows:auto 11rem auto auto}}
"""
