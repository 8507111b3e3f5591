"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs.map((run, place) => ({ ...run, place, shown: true, colour: `var(--r${place % 8})` }));
  const view = { axis: "step", smooth: 0 };
  const NS = "http://www.w3.org/2000/svg";
  const PHASES = 10; // colours of phases: hues that differ in lightness too
  const drawn = []; // functions that draw a chart again

  const svg = (name, attributes, parent) => {
    const node = document.createElementNS(NS, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  };
  const html = (name, attributes, parent, text) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const format = (value) => {
    if (value === null || !Number.isFinite(value)) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e9) return `${+(value / 1e9).toPrecision(3)}B`;
    if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
    if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
    if (size < 1e-3) return value.toExponential(1).replace("e-", "e−");
    return String(+value.toPrecision(4));
  };
  const UNITS = { // of axes: the size from which a unit is used, the unit, its name
    seconds: [[7200, 3600, " h"], [120, 60, " min"], [0, 1, " s"]],
    share: [[0, 0.01, "%"]],
    step: [[0, 1, ""]],
    count: [[1e10, 1e9, "B"], [1e7, 1e6, "M"], [1e4, 1e3, "k"], [0, 1, ""]],
  };
  const duration = (s) => (s >= 3600 ? `${+(s / 3600).toPrecision(3)} h` : s >= 60 ? `${+(s / 60).toPrecision(3)} min` : `${+s.toPrecision(3)} s`);

  // The smallest of 1, 2, 5 times a power of ten that gives at most `most` intervals.
  const tickStep = (low, high, most, whole) => {
    const least = (high - low) / most || 1;
    const power = 10 ** Math.floor(Math.log10(least));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= least * 0.999999);
    return whole ? Math.max(1, Math.round(step)) : step;
  };
  // Round values of an axis and their texts, which have the digits in which neighbours differ.
  const axisTicks = (low, high, most, kind) => {
    const size = Math.max(Math.abs(low), Math.abs(high));
    const steps = UNITS[kind].filter(([from]) => size >= from).map(([, unit, name]) => [tickStep(low / unit, high / unit, most, kind === "step"), unit, name]);
    // 20 million that change by one would be 20.000001M: a unit that needs more than two digits after the point is too large.
    const [step, unit, name] = steps.find(([step]) => step >= 0.01) ?? steps.at(-1);
    const power = Math.floor(Math.log10(step) + 1e-9);
    const text = (v) => {
      if (v === 0) return kind === "count" ? "0" : `0${name}`;
      if (power >= -4 || size / unit >= 1e-3) return v.toFixed(Math.max(0, -power)) + name;
      return v.toExponential(Math.max(0, Math.floor(Math.log10(Math.abs(v)) + 1e-9) - power)).replace("e-", "e−") + name;
    };
    const found = [];
    for (let n = Math.ceil(low / unit / step - 1e-9); n * step <= high / unit + step * 1e-9; n++) {
      const v = +(n * step).toPrecision(15);
      found.push([v * unit, text(v)]);
    }
    return found;
  };
  // Likewise of a logarithmic axis, from the logarithms of its ends: powers of ten, with 2 and 5 times these if they are
  // few, and round values where the ends are less than a factor of five apart.
  const logTicks = (low, high, kind) => {
    if (high - low < Math.log10(5)) return axisTicks(10 ** low, 10 ** high, 6, kind).map(([v, text]) => [Math.log10(v), text]);
    const few = high - low < 2.5, found = [];
    for (let e = Math.floor(low); e <= high; e++) {
      for (const factor of few ? [1, 2, 5] : [1]) {
        const at = e + Math.log10(factor);
        if (at >= low - 1e-9 && at <= high + 1e-9) found.push(at);
      }
    }
    const shown = few ? found : found.filter((_, n) => n % Math.ceil(found.length / 5) === 0);
    return shown.map((at) => [at, format(+(10 ** at).toPrecision(1)) + (kind === "seconds" ? " s" : "")]);
  };

  // Values over the chosen axis; a step without an entry takes the last one before it.
  const points = (run, metric) => {
    const series = run.series[metric];
    if (!series) return null;
    const [steps, values] = series;
    if (view.axis === "step") return { x: steps, y: values, steps };
    const axis = run.axes[view.axis];
    if (!axis) return null;
    let place = -1;
    const found = { x: [], y: [], steps: [] };
    steps.forEach((step, n) => {
      while (place + 1 < axis[0].length && axis[0][place + 1] <= step) place++;
      if (step < 0) return; // of a supervised start, whose tokens and times are not counted
      found.x.push(place < 0 ? 0 : axis[1][place]);
      found.y.push(values[n]);
      found.steps.push(step);
    });
    return found.x.length ? found : null;
  };
  const smoothed = (values) => {
    // Weighted by 1 - a^n, so the first values are not pulled to zero.
    let sum = 0, weight = 0;
    return values.map((value) => {
      if (value === null) return null;
      sum = view.smooth * sum + (1 - view.smooth) * value;
      weight = view.smooth * weight + (1 - view.smooth);
      return sum / weight;
    });
  };
  const path = (x, y, fx, fy) => {
    let text = "", open = false;
    for (let n = 0; n < x.length; n++) {
      if (y[n] === null) { open = false; continue; }
      text += `${open ? "L" : "M"}${fx(x[n]).toFixed(1)} ${fy(y[n]).toFixed(1)}`;
      open = true;
    }
    return text;
  };
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (list[mid] < x) low = mid; else high = mid; }
    return Math.abs(list[low] - x) <= Math.abs(list[high] - x) ? low : high;
  };
  const tipOf = (figure) => { const tip = html("div", { class: "tip", hidden: "" }, figure); return tip; };
  const place = (tip, figure, x, y) => {
    tip.hidden = false;
    const width = figure.clientWidth, right = x > width / 2;
    tip.style.left = right ? "" : `${Math.min(x + 12, width - 40)}px`;
    tip.style.right = right ? `${width - x + 12}px` : "";
    tip.style.top = `${y}px`;
  };
  const line = (tip, colour, name, value) => {
    const row = html("div", {}, tip);
    html("i", {}, row).style.background = colour;
    html("span", {}, row, name);
    html("b", {}, row, value);
  };

  const HEIGHT = 190, RIGHT = 8, TOP = 8, BOTTOM = 22;
  const frame = (figure, box, fy, yTicks, xLow, xHigh, axis) => {
    const width = Math.max(220, figure.clientWidth - 24);
    const left = Math.max(46, 10 + 6.2 * Math.max(0, ...yTicks.map(([, text]) => text.length)));
    box.replaceChildren();
    box.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    box.setAttribute("height", HEIGHT);
    const fx = (x) => left + ((x - xLow) / (xHigh - xLow || 1)) * (width - left - RIGHT);
    for (const [tick, text] of yTicks) {
      const y = fy(tick);
      svg("line", { class: "rule", x1: left, x2: width - RIGHT, y1: y, y2: y }, box);
      svg("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, box).textContent = text;
    }
    for (const [tick, text] of axisTicks(xLow, xHigh, Math.max(2, width / 70), axis)) {
      const x = fx(tick);
      const anchor = x > width - 24 ? "end" : x < left + 8 ? "start" : "middle";
      svg("text", { x: Math.min(x, width - 2), y: HEIGHT - 6, "text-anchor": anchor }, box).textContent = text;
    }
    const valueAt = (clientX) => {
      const bounds = box.getBoundingClientRect();
      return xLow + (((clientX - bounds.left) * (width / bounds.width) - left) / (width - left - RIGHT)) * (xHigh - xLow);
    };
    return { fx, valueAt };
  };
  // A finger that only taps does not move, and leaves when it is lifted: its values stay until a tap elsewhere. A finger
  // that scrolls the page is cancelled.
  const onPointer = (node, show, hide) => {
    for (const type of ["pointerdown", "pointermove"]) node.addEventListener(type, show);
    node.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    node.addEventListener("pointercancel", hide);
    document.addEventListener("pointerdown", (event) => { if (!node.contains(event.target)) hide(); });
  };

  const chart = (panel, parent) => {
    const figure = html("figure", { class: "chart", "data-metric": panel.metric }, parent);
    const head = html("header", {}, figure);
    html("b", { title: panel.metric }, head, panel.title);
    const last = html("span", {}, head);
    const log = html("button", { type: "button", "aria-pressed": "false", title: "logarithmic scale" }, head, "log");
    const box = svg("svg", { role: "img", "aria-label": `${panel.title} over steps` }, figure);
    const tip = tipOf(figure);
    // Two tests: lookbehind is a syntax error in Safari before 16.4.
    const isTime = /^time\/|(^|[/_])seconds$/.test(panel.metric) || (/_s$/.test(panel.metric) && !/per_s$/.test(panel.metric));
    const kind = isTime ? "seconds" : "count";
    const written = (value) => (isTime && value !== null ? duration(value) : format(value));
    let scale = null, cross = null;
    const draw = () => {
      const lines = runs.filter((run) => run.shown).map((run) => ({ run, found: points(run, panel.metric) })).filter((one) => one.found);
      for (const one of lines) one.smooth = view.smooth > 0 ? smoothed(one.found.y) : one.found.y;
      const all = lines.flatMap((one) => one.found.y.filter((v) => v !== null));
      const positive = all.length > 0 && Math.min(...all.slice(0, 1), all.reduce((a, b) => Math.min(a, b), Infinity)) > 0;
      log.hidden = !positive;
      const isLog = positive && log.getAttribute("aria-pressed") === "true";
      const to = (v) => (isLog ? Math.log10(v) : v);
      let low = Infinity, high = -Infinity;
      for (const v of all) { low = Math.min(low, to(v)); high = Math.max(high, to(v)); }
      if (!all.length) { low = 0; high = 1; }
      if (low === 0 && high === 0) high = 1;
      if (high - low < 1e-12 * Math.max(1, Math.abs(high))) { const pad = Math.abs(high) * 0.1 || 1; low -= pad; high += pad; }
      const pad = (high - low) * 0.06;
      if (!(low === 0 && !isLog)) low -= pad;
      high += pad;
      let xLow = Infinity, xHigh = -Infinity;
      for (const { found } of lines) { xLow = Math.min(xLow, found.x[0]); xHigh = Math.max(xHigh, found.x.at(-1)); }
      if (!lines.length) { xLow = 0; xHigh = 1; }
      if (xLow === xHigh) { const pad = view.axis === "step" ? 1 : Math.abs(xLow) * 0.1 || 1; xLow -= pad; xHigh += pad; }
      const fy = (v) => TOP + (1 - (v - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
      const yTicks = isLog ? logTicks(low, high, kind) : axisTicks(low, high, 6, kind);
      const { fx, valueAt } = frame(figure, box, fy, yTicks, xLow, xHigh, view.axis === "tokens" ? "count" : view.axis);
      for (const { run, found, smooth } of lines) {
        const y = (values) => values.map((v) => (v === null ? null : to(v)));
        if (view.smooth > 0) svg("path", { class: "raw", d: path(found.x, y(found.y), fx, fy), style: `stroke:${run.colour}` }, box);
        svg("path", { d: path(found.x, y(smooth), fx, fy), style: `stroke:${run.colour}` + (run.place >= 8 ? ";stroke-dasharray:5 3" : "") }, box);
        found.y.forEach((v, n) => {
          const alone = (n === 0 || found.y[n - 1] === null) && (n === found.y.length - 1 || found.y[n + 1] === null);
          if (v !== null && (alone || found.y.length < 25)) svg("circle", { cx: fx(found.x[n]), cy: fy(to(v)), r: 2.2, style: `fill:${run.colour}` }, box);
          if (v === null) svg("text", { x: fx(found.x[n]), y: HEIGHT - BOTTOM - 2, "text-anchor": "middle", style: "fill:var(--mark)" }, box).textContent = "×";
        });
      }
      last.textContent = lines.length === 1 ? written(lines[0].found.y.at(-1)) : "";
      cross = svg("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" }, box);
      scale = { lines, fx, valueAt };
      tip.hidden = true;
    };
    const show = (event) => {
      if (!scale || !scale.lines.length) return;
      const x = scale.valueAt(event.clientX);
      tip.replaceChildren();
      let at = null;
      for (const { run, found, smooth } of scale.lines) {
        const n = nearest(found.x, x);
        if (at === null || Math.abs(found.x[n] - x) < Math.abs(at - x)) at = found.x[n];
        const value = view.smooth > 0 ? `${written(found.y[n])} (${written(smooth[n])})` : written(found.y[n]);
        line(tip, run.colour, runs.length > 1 ? `${run.name}, step ${found.steps[n]}` : `step ${found.steps[n]}`, value);
      }
      cross.setAttribute("visibility", "visible");
      cross.setAttribute("x1", scale.fx(at));
      cross.setAttribute("x2", scale.fx(at));
      place(tip, figure, event.clientX - figure.getBoundingClientRect().left, 36);
    };
    onPointer(box, show, () => { tip.hidden = true; cross?.setAttribute("visibility", "hidden"); });
    log.addEventListener("click", () => { log.setAttribute("aria-pressed", String(log.getAttribute("aria-pressed") !== "true")); draw(); });
    drawn.push({ figure, draw });
  };

  const phaseColour = (n) => `hsl(${[212, 165, 28, 268, 340, 190, 50, 100, 300, 0][n % PHASES]} 55% ${n % 2 ? 60 : 48}%)`;
  const split = (figure) => {
    const run = runs[+figure.dataset.run], { unit, steps, parts } = run.splits[figure.dataset.chart];
    const names = Object.keys(parts);
    const label = { seconds: duration, share: (v) => `${+(100 * v).toPrecision(3)}%`, count: format }[unit];
    figure.classList.add("chart");
    const legend = html("ul", { class: "legend" }, figure);
    names.forEach((name, n) => {
      const item = html("li", {}, legend, undefined);
      html("i", {}, item).style.background = phaseColour(n);
      item.append(name);
    });
    const box = svg("svg", { role: "img", "aria-label": `${names.join(", ")} over steps` }, figure), tip = tipOf(figure);
    const tops = [steps.map(() => 0)];
    for (const name of names) tops.push(tops.at(-1).map((below, n) => below + (parts[name][n] ?? 0)));
    // One column per step: a single step is a bar, and areas keep their size.
    const width = steps.length > 1 ? (steps.at(-1) - steps[0]) / (steps.length - 1) : 1;
    let scale = null;
    const draw = () => {
      const high = unit === "share" ? 1 : Math.max(...tops.at(-1)) * 1.05 || 1, xLow = steps[0] - width / 2, xHigh = steps.at(-1) + width / 2;
      const fy = (v) => TOP + (1 - v / high) * (HEIGHT - TOP - BOTTOM);
      const { fx, valueAt } = frame(figure, box, fy, axisTicks(0, high, 6, unit), xLow, xHigh, "step");
      names.forEach((name, n) => {
        const up = [], down = [];
        steps.forEach((step, i) => {
          const left = fx(step - width / 2), right = fx(step + width / 2);
          up.push(`${left.toFixed(1)} ${fy(tops[n + 1][i]).toFixed(1)}`, `${right.toFixed(1)} ${fy(tops[n + 1][i]).toFixed(1)}`);
          down.unshift(`${right.toFixed(1)} ${fy(tops[n][i]).toFixed(1)}`, `${left.toFixed(1)} ${fy(tops[n][i]).toFixed(1)}`);
        });
        svg("path", { d: `M${[...up, ...down].join("L")}Z`, style: `fill:${phaseColour(n)};stroke:none` }, box);
      });
      scale = { valueAt };
    };
    const show = (event) => {
      const n = nearest(steps, scale.valueAt(event.clientX));
      tip.replaceChildren();
      html("div", {}, tip, `step ${steps[n]}${unit === "share" ? "" : `: ${label(tops.at(-1)[n])}`}`);
      [...names.entries()].reverse().forEach(([i, name]) => line(tip, phaseColour(i), name, label(parts[name][n] ?? 0)));
      place(tip, figure, event.clientX - figure.getBoundingClientRect().left, 40);
    };
    onPointer(box, show, () => { tip.hidden = true; });
    drawn.push({ figure, draw });
  };

  // Twice the mean is as far from it as half: the colour is the logarithm of the ratio.
  const heat = (figure) => {
    const map = runs[+figure.dataset.run].loads[figure.dataset.role];
    const bytes = Uint8Array.from(atob(map.cells), (one) => one.charCodeAt(0));
    const nLayers = map.layers.length, nExperts = map.experts, nSteps = map.steps.length;
    const load = (step, layer, expert) => bytes[(step * nLayers + layer) * nExperts + expert] / map.scale;
    const span = (names) => (names.length > 1 ? `${names[0]} to ${names.at(-1)}` : names[0]);
    const experts = span([...Array(nExperts).keys()]);
    const bar = html("div", { class: "bar-line" }, figure);
    const text = html("span", {}, bar);
    const slider = html("input", { type: "range", min: 0, max: nSteps - 1, value: nSteps - 1, "aria-label": "step" }, bar);
    html("p", { class: "note" }, figure, `Rows: layers ${span(map.layers)}, from the top. Columns: experts ${experts}.`);
    const byLayer = html("canvas", { role: "img", "aria-label": "load per layer and expert" }, figure);
    const choice = html("div", { class: "bar-line" }, figure);
    const label = html("label", {}, choice, "layer ");
    const select = html("select", {}, label);
    map.layers.forEach((name, n) => html("option", { value: n }, select, name));
    html("span", { class: "note" }, choice, `Rows: experts ${experts}, from the top. Columns: optimizer steps ${span(map.steps)}.`);
    const bySteps = html("canvas", { role: "img", "aria-label": "load per expert over steps" }, figure);
    const legend = html("div", { class: "bar-line note" }, figure);
    html("span", {}, legend, "0.25 x the mean");
    const scale = html("span", { class: "scale" }, legend);
    html("span", {}, legend, "4 x");
    const paint = (canvas, rows, columns, value, most) => {
      const style = getComputedStyle(document.documentElement);
      const [low, high] = ["--h-low", "--h-high"].map((name) => style.getPropertyValue(name).split(",").map(Number));
      canvas.width = columns;
      canvas.height = rows;
      canvas.style.height = `${Math.min(most, Math.max(12, 220 / rows) * rows)}px`;
      const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        const ratio = value(r, c), far = ratio <= 0 ? -1 : Math.max(-1, Math.min(1, Math.log2(ratio) / 2));
        const [red, green, blue] = far < 0 ? low : high, at = 4 * (r * columns + c);
        image.data.set([red, green, blue, Math.round(255 * Math.abs(far))], at);
      }
      context.putImageData(image, 0, 0);
      scale.style.background = `linear-gradient(90deg, rgb(${low}), var(--panel), rgb(${high}))`;
    };
    const draw = () => {
      const step = +slider.value, layer = +select.value;
      text.textContent = `optimizer step ${map.steps[step]}`;
      paint(byLayer, nLayers, nExperts, (r, c) => load(step, r, c), 360);
      paint(bySteps, nExperts, nSteps, (r, c) => load(c, layer, r), 360);
    };
    const hover = (canvas, rows, columns, describe) => {
      const tip = tipOf(figure);
      const show = (event) => {
        const bounds = canvas.getBoundingClientRect(), outer = figure.getBoundingClientRect();
        const c = Math.min(columns - 1, Math.max(0, Math.floor(((event.clientX - bounds.left) / bounds.width) * columns)));
        const r = Math.min(rows - 1, Math.max(0, Math.floor(((event.clientY - bounds.top) / bounds.height) * rows)));
        tip.textContent = describe(r, c);
        place(tip, figure, event.clientX - outer.left, event.clientY - outer.top + 14);
      };
      onPointer(canvas, show, () => { tip.hidden = true; });
    };
    hover(byLayer, nLayers, nExperts, (r, c) => `layer ${map.layers[r]}, expert ${c}: ${load(+slider.value, r, c).toFixed(2)} x the mean`);
    hover(bySteps, nExperts, nSteps, (r, c) => `step ${map.steps[c]}, expert ${r}: ${load(c, +select.value, r).toFixed(2)} x the mean`);
    slider.addEventListener("input", draw);
    select.addEventListener("change", draw);
    drawn.push({ figure, draw });
  };

  for (const grid of document.querySelectorAll(".grid[data-group]")) {
    for (const panel of data.panels) if (panel.group === grid.dataset.group) chart(panel, grid);
  }
  document.querySelectorAll("figure.split").forEach(split);
  document.querySelectorAll("figure.heat").forEach(heat);

  // Charts in a closed <details> have no width; they are drawn when it opens.
  const redraw = () => { for (const one of drawn) if (one.figure.clientWidth > 0) one.draw(); };
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", redraw));
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 120); });
  document.querySelectorAll(".chip").forEach((chip) => {
    const run = runs[+chip.dataset.run];
    chip.querySelector("i").style.background = run.colour;
    chip.addEventListener("click", () => { run.shown = !run.shown; chip.setAttribute("aria-pressed", String(run.shown)); redraw(); });
  });
  document.getElementById("axis")?.addEventListener("change", (event) => { view.axis = event.target.value; redraw(); });
  document.getElementById("smooth")?.addEventListener("input", (event) => { view.smooth = +event.target.value; redraw(); });
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    redraw();
  });

  redraw();

  // Titles need a mouse; on a phone, a tap shows them below the sample.
  for (const sample of document.querySelectorAll(".sample")) {
    const note = html("p", { class: "note picked", hidden: "" }, sample);
    sample.addEventListener("click", (event) => {
      const token = event.target.closest("[title]");
      if (!token) return;
      sample.querySelector("[data-picked]")?.removeAttribute("data-picked");
      token.setAttribute("data-picked", "");
      note.textContent = `${JSON.stringify(token.textContent.replaceAll("↵\n", "↵"))}: ${token.title}`;
      note.hidden = false;
    });
  }

  for (const options of document.querySelectorAll(".options")) {
    const search = options.querySelector("input[type=search]"), only = options.querySelector("[data-differing]");
    const apply = () => {
      const words = (search?.value ?? "").toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of options.querySelectorAll("tbody tr")) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word)) || (only?.checked && !row.classList.contains("marked"));
      }
    };
    search?.addEventListener("input", apply);
    only?.addEventListener("change", apply);
  }
})();
