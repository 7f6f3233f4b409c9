"""Jinja2 templates of a page.

They are Python, because Flower's bundles leave HTML files out, and a real run's server is started from a bundle.
"""

PAGE = """\
{% import "blocks" as b with context -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src '{{ live_hash if version else script_hash }}'; \
{% if version %}connect-src 'self'; {% endif %}base-uri 'none'; form-action 'none'">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{{ page.title }}</title>
<style>{{ style }}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<div class="brand" aria-hidden="true">Bract</div>
<h1>{{ page.title }}</h1>
<p>{{ page.subtitle }}</p>
</header>
{% if version %}
<div class="live"><p id="live" data-version="{{ version }}" data-at="{{ now }}">Live</p>\
<button type="button" id="pause" aria-pressed="false">Pause</button></div>
{% endif %}
<div class="layout">
<nav aria-label="Sections"><ol>
{%- for section in page.sections %}<li><a href="#{{ section.name }}">{{ section.title }}</a></li>{% endfor -%}
</ol></nav>
<main id="main">
{%- for section in page.sections %}
<section id="{{ section.name }}" aria-labelledby="{{ section.name }}-title">
<h2 id="{{ section.name }}-title">{{ section.title }}</h2>
{{ b.all(section.blocks) }}</section>
{%- endfor %}
</main>
</div>
<footer><p>{{ page.footer }}</p></footer>
<script>{{ live_script if version else script }}</script>
</body>
</html>
"""

BLOCKS = """\
{% macro cell(c) -%}
{%- if c.grade %}<span class="grade {{ c.grade }}">{{ c.text }}</span>
{%- elif c.way %}<time datetime="{{ c.moment }}" data-way="{{ c.way }}" title="{{ c.text }}">{{ c.text }}</time>
{%- elif c.is_name %}<bdi{% if c.title %} title="{{ c.title }}"{% endif %}>{{ c.text }}</bdi>
{%- elif c.value is not none %}<data value="{{ c.value }}"{% if c.source %} data-from="{{ c.source }}"{% endif %}>\
{{ c.text }}</data>
{%- else %}{{ c.text|code }}{% endif %}
{%- if c.low is not none and c.high is not none %}<small>{{ "%.3f to %.3f"|format(c.low, c.high) }}</small>\
<span class="bar" aria-hidden="true"><i style="left:{{ pct(c.low) }}%;width:{{ pct(c.high - c.low) }}%"></i>\
<b style="left:{{ pct(c.value) }}%"></b></span>{% endif -%}
{%- endmacro %}

{% macro part(p) -%}
{% if p is string %}{{ p|code }}{% elif p.strong %}<strong>{{ cell(p) }}</strong>{% else %}{{ cell(p) }}{% endif %}
{%- endmacro %}

{% macro table(t, behind=false) -%}
{% set prose = t.is_prose and not behind -%}
<div class="scroll{% if t.rows|length > 40 %} tall{% endif %}" tabindex="0" role="group" \
aria-label="{{ t.caption }}">
<table class="{{ 'behind' if behind else 'plain' }}{{ ' sortable' if t.sortable }}\
{{ ' prose' if prose }}\
{{ ' few' if t.columns|length < 4 and not prose }}"{% if prose %} role="table"{% endif %}>
<caption{% if behind %} class="hush"{% endif %}>{{ t.caption }}</caption>
<thead><tr{% if prose %} role="row"{% endif %}>{% for column in t.columns %}\
<th scope="col"{% if prose %} role="columnheader"{% endif %}\
{% if t.is_numeric(loop.index0) %} class="n"{% endif %}>\
{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in t.rows %}<tr{% if prose %} role="row"{% endif %}>
{%- for c in row %}{% if loop.first %}\
<th scope="row"{% if prose %} role="rowheader"{% endif %}\
{% if t.is_numeric(0) %} class="n"{% endif %}>{{ cell(c) }}</th>
{%- else %}<td{% if prose %} role="cell"{% endif %}\
{% if t.is_numeric(loop.index0) %} class="n"{% endif %}>{{ cell(c) }}</td>\
{% endif %}{% endfor -%}
</tr>
{% endfor -%}
</tbody></table></div>
{%- endmacro %}

{% macro behind(t) -%}
<details class="data"><summary>Data table</summary>{{ table(t, true) }}</details>
{%- endmacro %}

{% macro frame(chart, plot, labels) -%}
<div class="frame{{ ' lanes' if labels }}">
{% if not labels %}<div class="y-title">{{ chart.y_label }}</div>{% endif %}
<div class="y" aria-hidden="true">{% for tick in plot.y_ticks %}<span style="bottom:{{ tick.place }}%">\
{{ tick.text }}</span>{% endfor %}</div>
<div class="plot" role="img" aria-label="{{ chart.title }}">
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true" focusable="false">
{%- for tick in plot.y_ticks %}<path class="grid" d="M0 {{ 1000 - 10 * tick.place }}H1000"/>{% endfor %}
{%- for d in plot.drawn %}<g class="s{{ d.look }}">
{%- if d.band %}<path class="band" d="{{ d.band }}"/>{% endif %}
{%- if d.line %}<path class="line" d="{{ d.line }}"/>{% endif %}
{%- if d.dots %}<path class="dots" d="{{ d.dots }}"/>{% endif %}</g>{% endfor -%}
</svg><div class="cursor" hidden></div></div>
<div class="x" aria-hidden="true">{% for tick in plot.x_ticks %}<span style="left:{{ tick.place }}%">\
{{ tick.text }}</span>{% endfor %}</div>
<div class="x-title">{{ chart.x_label }}</div>
</div>
{%- endmacro %}

{% macro lines(chart) -%}
{% set plot = plot_of(chart) %}
<figure class="chart" data-chart="row" data-x="{{ plot.places|join(',') }}">
<figcaption>{{ chart.title }}</figcaption>
<ul class="legend">{% for series in chart.series %}<li class="s{{ series.look }}">\
<svg viewBox="0 0 28 10" aria-hidden="true" focusable="false"><path class="line" d="M1 5H27"/></svg>\
<span>{{ series.name }}</span></li>\
{% endfor %}</ul>
{{ frame(chart, plot, false) }}
<p class="readout" hidden></p>
{{ behind(chart.table) }}
</figure>
{%- endmacro %}

{% macro timeline(chart) -%}
{% set plot = plot_of(chart) %}
<figure class="chart" data-chart="mark" data-x="{{ plot.places|join(',') }}" data-y="{{ plot.heights|join(',') }}">
<figcaption>{{ chart.title }}</figcaption>
{{ frame(chart, plot, true) }}
<p class="readout" hidden></p>
{{ behind(chart.table) }}
</figure>
{%- endmacro %}

{% macro matrix(m) -%}
<figure class="chart" data-chart="matrix">
<figcaption>{{ m.title }}</figcaption>
<div class="scroll" tabindex="0" role="group" aria-label="{{ m.title }}">
<table class="matrix\
{{ ' wide' if m.columns|map(attribute='text')|map('length')|max > 4 }}{{ ' one' if not m.diagonal }}">
<caption class="hush">{{ m.title }}</caption>
<thead><tr><th scope="col" class="corner">{{ m.corner }}</th>{% for c in m.columns %}\
<th scope="col"><span>{{ cell(c) }}\
</span></th>{% endfor %}</tr></thead>
<tbody>{% for row in m.cells %}{% set at = loop.index0 %}<tr><th scope="row">{{ cell(m.rows[at]) }}</th>
{%- for c in row %}<td{% if m.diagonal and loop.index0 == at %} class="hit"{% endif %} \
style="--s:{{ "%.3f"|format(m.shares[at][loop.index0]) }}">{{ cell(c) }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<p class="readout" hidden></p>
</figure>
{%- endmacro %}

{% macro pixels(m) -%}
<figure class="chart" data-chart="pixels">
<figcaption>{{ m.title }}</figcaption>
<div class="frame map"><div class="y-title">{{ m.row_label }} ({{ m.rows|length }})</div>
<div class="plot" role="img" aria-label="{{ m.title }}"><img alt="" src="{{ m.image }}">\
<div class="cursor" hidden></div></div>
<div class="x-title">{{ m.column_label }} ({{ m.columns|length }})</div></div>
<script type="application/json">{{ {"rows": m.rows, "columns": m.columns, "values": m.values, "row": m.row_label, \
"column": m.column_label}|tojson }}</script>
<p class="readout" hidden></p>
{{ behind(m.table) }}
</figure>
{%- endmacro %}

{% macro all(blocks) -%}
{% for block in blocks -%}
{% if block.kind == "text" %}<p{% if block.strong %} class="lead"{% elif block.small %} class="small"{% endif %}>\
{% for p in block.parts %}{{ part(p) }}{% endfor %}</p>
{% elif block.kind == "tiles" %}<dl class="tiles">{% for tile in block.tiles %}<div><dt>{{ tile.label }}</dt>\
<dd>{{ cell(tile.cell) }}</dd>{% if tile.note %}<dd class="note">{{ tile.note }}</dd>{% endif %}</div>{% endfor %}</dl>
{% elif block.kind == "table" %}{{ table(block) }}
{% elif block.kind == "lines" %}{{ lines(block) }}
{% elif block.kind == "timeline" %}{{ timeline(block) }}
{% elif block.kind == "matrix" %}{{ matrix(block) }}
{% elif block.kind == "pixels" %}{{ pixels(block) }}
{% elif block.kind == "details" %}<details><summary>{{ block.summary }}</summary>{{ all(block.blocks) }}</details>
{% elif block.kind == "notice" %}<aside class="notice {{ block.mark }}" role="note" aria-label="{{ block.title }}">\
<h3>{{ block.title }}</h3>{{ all(block.blocks) }}</aside>
{% endif %}
{%- endfor %}
{%- endmacro %}
"""
