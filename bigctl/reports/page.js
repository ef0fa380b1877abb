// What a report does in the browser: draws its plots in the reader's theme, sorts tables, and follows a run that is
// being trained. Everything it needs is in the page.
"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = () => matchMedia("(prefers-color-scheme: dark)"); // asked anew: a list that is kept may give its old answer
  const change = dark();
  const coarse = matchMedia("(pointer: coarse)").matches; // a finger that moves over a plot means to scroll
  const drawn = new Set(), logarithmic = new Set();
  let printing = false, revision = 0; // of the points: Plotly sees new ones in the same array only by this

  // ------------------------------------------------------------------------------------------------------- plots

  function theme() {
    const light = printing || !dark().matches;
    return {
      ink: light ? "#1a1f29" : "#e6e9ee",
      lines: light ? "#e5e8ed" : "#2d333d",
      card: light ? "#ffffff" : "#191d24",
      names: { card: light ? "#ffffff" : "#191d24", muted: light ? "#7b8494" : "#8791a0", accent: light ? "#1d4ed8" : "#7fb0ff" },
      scales: {
        share: light ? [[0, "#f1f4f9"], [0.02, "#dbe6fb"], [1, "#1d4ed8"]] : [[0, "#20252e"], [0.02, "#24344f"], [1, "#3f74d9"]],
        quality: light ? [[0, "#cfd6e1"], [0.6, "#6a9bf4"], [1, "#12309c"]] : [[0, "#3a4351"], [0.6, "#3f7be0"], [1, "#b9d5ff"]],
      },
    };
  }

  // A copy of a part of a figure with the named colours replaced; arrays of points are shared, not copied.
  function painted(part, look) {
    if (part === null || typeof part !== "object") return part;
    if (Array.isArray(part)) return part.length && typeof part[0] === "object" && !Array.isArray(part[0]) ? part.map((p) => painted(p, look)) : part;
    const copy = {};
    for (const [key, value] of Object.entries(part)) {
      if (key.endsWith("color") && look.names[value]) copy[key] = look.names[value];
      else if (key === "color" && String(value).startsWith("quality:")) copy[key] = between(look.scales.quality, Number(value.slice(8)));
      else if (key === "colorscale" && look.scales[value]) copy[key] = look.scales[value];
      else copy[key] = painted(value, look);
    }
    return copy;
  }

  // The colour at a place from 0 to 1 on a colour scale.
  function between(stops, place) {
    const upper = Math.max(1, stops.findIndex(([at]) => at >= place)), [[a, from], [b, to]] = [stops[upper - 1], stops[upper]];
    const part = (place - a) / (b - a), channel = (text, k) => parseInt(text.slice(1 + 2 * k, 3 + 2 * k), 16);
    return `rgb(${[0, 1, 2].map((k) => Math.round(channel(from, k) * (1 - part) + channel(to, k) * part))})`;
  }

  function layout(id, look, width) {
    const own = painted(figures[id].layout, look);
    const axis = { gridcolor: look.lines, linecolor: look.lines, automargin: true, zeroline: false, tickformat: ",~g" };
    const title = (a) => (a && a.title ? { title: { standoff: 8, ...a.title } } : {});
    const y = logarithmic.has(id) ? { type: "log" } : {};
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: look.ink, size: 12, family: "system-ui, sans-serif" },
      margin: { l: 52, r: 14, t: 26, b: 42 },
      modebar: { bgcolor: look.card, color: look.names.muted, activecolor: look.ink },
      hoverlabel: { bgcolor: look.card, bordercolor: look.lines, font: { color: look.ink } },
      dragmode: "zoom", uirevision: id, datarevision: revision, ...own, width, ...(coarse ? { dragmode: false } : {}),
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 11 }, ...own.legend },
      xaxis: { ...axis, ...own.xaxis, ...title(own.xaxis) },
      yaxis: { ...axis, ...own.yaxis, ...title(own.yaxis), ...y },
    };
  }

  const config = { displaylogo: false, displayModeBar: coarse ? false : "hover", responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] };

  function draw(id, width) {
    const place = document.getElementById(id), look = theme();
    Plotly.react(place, figures[id].data.map((t) => painted(t, look)), layout(id, look, width), config);
    if (figures[id].brush && !drawn.has(id)) brush(place, figures[id].data);
    drawn.add(id);
  }

  // A box over some axes fades the lines that leave it there; a double click takes that back.
  function brush(place, lines) {
    const fade = (through) => Plotly.restyle(place, { opacity: lines.map((line) => (through(line) ? 1 : 0.07)) });
    place.on("plotly_selected", (event) => {
      if (!event?.range) return;
      const [left, right] = [event.range.x[0] - 0.05, event.range.x[1] + 0.05], [bottom, top] = event.range.y;
      fade((line) => line.x.every((x, n) => x < left || x > right || (line.y[n] >= bottom && line.y[n] <= top)));
    });
    place.on("plotly_deselect", () => fade(() => true));
  }

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      if (!drawn.has(entry.target.id)) draw(entry.target.id);
    }
    document.documentElement.dataset.ready = Math.round(performance.now()); // [ms] what is in view is drawn
  }, { rootMargin: "300px" });

  const redraw = () => drawn.forEach((id) => draw(id));
  change.addEventListener("change", redraw);

  // On paper everything is there: all plots, in the light theme and no wider than the sheet, and what is folded up.
  const folded = document.querySelectorAll("details:not([open])");
  addEventListener("beforeprint", () => {
    printing = true;
    folded.forEach((part) => { part.open = true; });
    Object.keys(figures).forEach((id) => draw(id, 640));
  });
  addEventListener("afterprint", () => {
    printing = false;
    folded.forEach((part) => { part.open = false; });
    redraw();
  });

  for (const button of document.querySelectorAll("button[data-log]")) {
    button.addEventListener("click", () => {
      const id = button.dataset.log, on = !logarithmic.has(id);
      on ? logarithmic.add(id) : logarithmic.delete(id);
      button.setAttribute("aria-pressed", on);
      draw(id);
    });
  }

  // ------------------------------------------------------------------------------------------------------ tables

  const written = (row, column) => (row.cells[column]?.dataset.value ?? row.cells[column]?.textContent ?? "").trim();
  const asNumber = (text) => (text === "" ? NaN : Number(text.replaceAll(",", "")));

  // Numbers by value, then words; what is missing comes last in both directions.
  function compare(a, b, sign) {
    const [missingA, missingB] = [a, b].map((t) => t === "" || t === "-");
    if (missingA || missingB) return missingA - missingB;
    const [x, y] = [asNumber(a), asNumber(b)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return sign * (Number.isNaN(x) ? a.localeCompare(b, undefined, { numeric: true }) : x - y);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (head.dataset.plain !== undefined) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      if (table.tBodies[0].rows[0]?.cells[column]?.classList.contains("n")) button.className = "right";
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => compare(written(a, column), written(b, column), sign));
        table.tBodies[0].append(...rows);
      });
    });
  }

  for (const field of document.querySelectorAll("input[data-filter]")) {
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of document.getElementById(field.dataset.filter).tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.("button[data-copy]");
    if (!button) return;
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(code); // not allowed here: marked at least
    }
  });

  // -------------------------------------------------------------------------------------------------------- live

  // The token of `bigctl ui` has become a cookie: it need not stay in the address, which people send around.
  if (/[?&]token=/.test(location.search)) {
    try {
      const kept = new URLSearchParams(location.search);
      kept.delete("token");
      history.replaceState(null, "", location.pathname + (kept.size ? `?${kept}` : ""));
    } catch {
      // a page on disk: nothing to hide
    }
  }

  // New points since the last byte that was read; a metric that is new, or lines that were taken back, need a new page.
  async function follow(address, from) {
    let found;
    try {
      found = await (await fetch(`${address}?from=${from}`)).json();
    } catch {
      return setTimeout(follow, 5000, address, from); // the server may come back
    }
    const places = {};
    for (const [id, figure] of Object.entries(figures)) figure.data.forEach((trace, n) => { if (trace.meta) places[trace.meta] = [id, n]; });
    if (found.reload || Object.keys(found.curves).some((name) => !(name in places))) return location.reload();
    const changed = new Set();
    for (const [name, curve] of Object.entries(found.curves)) {
      const [id, n] = places[name], trace = figures[id].data[n];
      trace.x.push(...curve.x);
      trace.y.push(...curve.y);
      changed.add(id);
    }
    revision += 1;
    changed.forEach((id) => { if (drawn.has(id)) draw(id); });
    const bar = document.getElementById("progress");
    if (bar && found.pace) {
      Object.assign(bar.querySelector("progress"), { max: found.pace.total, value: found.pace.step });
      bar.querySelector("span").textContent = found.pace.said;
    }
    document.getElementById("status").textContent = found.status;
    if (found.status === "running") setTimeout(follow, 2000, address, found.next);
    else location.reload();
  }
  const body = document.body.dataset;
  if (body.live) setTimeout(follow, 2000, body.live, body.from);

  // A page of several runs: the same page is asked for again, and what differs is taken over, row by row and plot by
  // plot. What the reader has ticked, sorted, searched or zoomed stays.
  const differs = (ours, theirs) => ours.textContent !== theirs.textContent || ours.querySelector("progress")?.value !== theirs.querySelector("progress")?.value;

  function takeRows(ours, theirs) {
    const body = ours.tBodies[0], rows = new Map([...body.rows].map((row) => [row.dataset.key, row]));
    for (const row of theirs.tBodies[0].rows) {
      const known = rows.get(row.dataset.key);
      rows.delete(row.dataset.key);
      if (!known) body.append(document.importNode(row, true));
      else [...row.cells].forEach((cell, n) => {
        if (!cell.classList.contains("pick") && differs(known.cells[n], cell)) known.cells[n].replaceWith(document.importNode(cell, true));
      });
      if (known) known.className = row.className;
    }
    rows.forEach((row) => row.remove());
  }

  async function again(address) {
    const began = performance.now();
    let theirs;
    try {
      theirs = new DOMParser().parseFromString(await (await fetch(address)).text(), "text/html");
    } catch {
      return setTimeout(again, 5000, address); // the server may come back
    }
    const drawings = theirs.getElementById("figures");
    if (!drawings) return setTimeout(again, 5000, address);
    const found = JSON.parse(drawings.textContent);
    if (Object.keys(found).join() !== Object.keys(figures).join()) return location.reload();
    revision += 1;
    for (const [id, figure] of Object.entries(found)) {
      const same = JSON.stringify(figure) === JSON.stringify(figures[id]);
      figures[id] = figure;
      if (!same && drawn.has(id)) draw(id);
      const words = (page) => page.getElementById(id)?.closest("figure")?.querySelector("figcaption");
      if (!same && words(document) && words(theirs)) words(document).textContent = words(theirs).textContent;
    }
    for (const ours of document.querySelectorAll("[data-fresh]")) {
      const other = theirs.getElementById(ours.id);
      if (!other) continue;
      if (ours.tBodies) takeRows(ours, other);
      else if (differs(ours, other)) ours.replaceChildren(...[...other.childNodes].map((node) => document.importNode(node, true)));
    }
    const next = theirs.body.dataset.again; // none: all has ended
    if (next) setTimeout(again, Math.max(3000, 4 * (performance.now() - began)), next);
  }
  if (body.again) setTimeout(again, 3000, body.again);

  const plots = document.querySelectorAll(".plot");
  plots.forEach((place) => seen.observe(place));
  if (!plots.length) document.documentElement.dataset.ready = Math.round(performance.now());
})();
