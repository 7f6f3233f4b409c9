"""Script that reads charts by mouse, touch and keyboard.

A chart's figures are read from the table behind it, so that the two cannot disagree.
"""

SCRIPT = """
"use strict";
(() => {
  const words = cell => (cell.querySelector("bdi, data, .grade") || cell).textContent.trim();
  const clamp = (value, last) => Math.max(0, Math.min(last, value));
  const STEPS = {ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
                 Home: -Infinity, End: Infinity};

  // A plot is a slider over the rows of its table: each step is read out by a screen reader.
  function slider(plot, readout, count, step, show, nearest) {
    let at = -1;
    const go = place => {
      at = place;
      const said = show(at);
      readout.textContent = said;
      plot.setAttribute("aria-valuenow", at + 1);
      plot.setAttribute("aria-valuetext", said);
    };
    plot.tabIndex = 0;
    for (const [name, value] of Object.entries({role: "slider", "aria-valuemin": 1, "aria-valuemax": count,
                                                "aria-valuenow": 1, "aria-valuetext": "not read yet"})) {
      plot.setAttribute(name, value);
    }
    readout.hidden = false;
    readout.textContent = "Point at the chart, or focus it and press the arrow keys.";
    plot.addEventListener("keydown", event => {
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const move = step(event.key);
      if (move === undefined) return;
      event.preventDefault();
      go(at < 0 && Number.isFinite(move) ? 0 : clamp(at + move, count - 1));
    });
    plot.addEventListener("focus", () => { if (at < 0 && plot.matches(":focus-visible")) go(0); });
    for (const kind of ["pointermove", "pointerdown"]) {
      plot.addEventListener(kind, event => {
        const box = plot.getBoundingClientRect();
        go(nearest((event.clientX - box.left) / box.width * 100, (event.clientY - box.top) / box.height * 100));
      });
    }
  }

  function rowChart(figure) {
    const table = figure.querySelector("table.behind"), plot = figure.querySelector(".plot");
    const rows = [...table.tBodies[0].rows], heads = [...table.tHead.rows[0].cells].map(words);
    const xs = figure.dataset.x.split(",").map(Number);
    const ys = figure.dataset.y ? figure.dataset.y.split(",").map(Number) : null;
    const cursor = plot.querySelector(".cursor");
    if (!rows.length) return;
    slider(plot, figure.querySelector(".readout"), rows.length, key => STEPS[key], at => {
      cursor.hidden = false;
      cursor.style.left = xs[at] + "%";
      return [...rows[at].cells].map((cell, k) => heads[k] + " " + words(cell)).join(" \\u00b7 ");
    }, (x, y) => {
      const far = i => Math.abs(xs[i] - x) + (ys ? Math.abs(100 - ys[i] - y) : 0);
      return xs.reduce((best, _, i) => far(i) < far(best) ? i : best, 0);
    });
  }

  function pixelChart(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent), plot = figure.querySelector(".plot");
    const wide = data.columns.length, high = data.rows.length, cursor = plot.querySelector(".cursor");
    const steps = {...STEPS, ArrowDown: wide, ArrowUp: -wide};
    slider(plot, figure.querySelector(".readout"), wide * high, key => steps[key], at => {
      const row = Math.floor(at / wide), column = at % wide;
      Object.assign(cursor.style, {left: 100 * column / wide + "%", top: 100 * row / high + "%",
                                   width: 100 / wide + "%", height: 100 / high + "%"});
      cursor.hidden = false;
      return data.row + " " + data.rows[row] + " \\u00b7 " + data.column + " " + data.columns[column] + " \\u00b7 "
        + data.values[row][column].toLocaleString("en") + " images";
    }, (x, y) => clamp(Math.floor(y * high / 100), high - 1) * wide + clamp(Math.floor(x * wide / 100), wide - 1));
  }

  // A matrix is a table already. One of its cells takes part in the order of the Tab key, the arrows move it.
  function matrixChart(figure) {
    const table = figure.querySelector("table"), readout = figure.querySelector(".readout");
    const heads = [...table.tHead.rows[0].cells].map(words), rows = [...table.tBodies[0].rows];
    const corner = heads[0];
    table.setAttribute("role", "grid");
    table.setAttribute("aria-label", figure.querySelector("figcaption").textContent);
    const cells = rows.map(row => [...row.cells].slice(1));
    const show = cell => {
      const row = cell.parentNode, column = cell.cellIndex;
      readout.textContent = corner + ": " + words(row.cells[0]) + " \\u00b7 " + heads[column] + " \\u00b7 "
        + words(cell) + " images";
    };
    readout.hidden = false;
    readout.textContent = "Point at a cell, or focus one and press the arrow keys.";
    cells.flat().forEach(cell => { cell.tabIndex = -1; });
    if (cells.length) cells[0][0].tabIndex = 0;
    table.addEventListener("pointerover", event => { const cell = event.target.closest("td"); if (cell) show(cell); });
    table.addEventListener("focusin", event => { const cell = event.target.closest("td"); if (cell) show(cell); });
    table.addEventListener("keydown", event => {
      const cell = event.target.closest("td");
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!cell || !move) return;
      event.preventDefault();
      const row = clamp(cell.parentNode.sectionRowIndex + move[0], rows.length - 1);
      const next = cells[row][clamp(cell.cellIndex - 1 + move[1], cells[row].length - 1)];
      cell.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }

  function sortable(table) {
    const body = table.tBodies[0], order = [...body.rows];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = row => {
          const data = row.cells[column].querySelector("data");
          return data ? Number(data.value) : words(row.cells[column]);
        };
        const compare = (a, b) => typeof a === typeof b
          ? (typeof a === "number" ? b - a : String(b).localeCompare(a)) : typeof a === "number" ? -1 : 1;
        body.append(...[...order].sort((a, b) => (down ? 1 : -1) * compare(value(a), value(b))));
      });
    });
  }

  const kinds = {row: rowChart, mark: rowChart, pixels: pixelChart, matrix: matrixChart};
  const start = () => {
    document.querySelectorAll("[data-chart]").forEach(figure => kinds[figure.dataset.chart](figure));
    document.querySelectorAll("table.sortable").forEach(sortable);
  };
  start();
  // A live page has replaced its content.
  document.addEventListener("bract-changed", start);
})();
"""
