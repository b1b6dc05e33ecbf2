// The report's own script: its table, charts and timelines, from the JSON that the page holds. Texts of values are set
// as text and never as markup; nothing is fetched.
"use strict";
const held = (id) => JSON.parse(document.getElementById(id).textContent);
const [figures, charts, traces] = ["wattflow-figures", "wattflow-charts", "wattflow-traces"].map(held);

const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const menu = (options, chosen, changed) => {
  const made = element("select", {}, ...options.map(([value, text]) => element("option", { value, textContent: text })));
  made.value = chosen;
  made.addEventListener("change", () => changed(made.value));
  return made;
};

// --- the table of settings ------------------------------------------------------------------------

const unknownLast = (sign) => (a, b) => (a === "") - (b === "") || (a === "" ? 0 : sign * (a - b));
DataTable.type("known", "order", { asc: unknownLast(1), desc: unknownLast(-1) });
DataTable.ext.errMode = "throw";

const drawTable = () => {
  const place = document.getElementById("table");
  const heads = [...place.tHead.rows[0].cells];
  const rows = [...place.tBodies[0].rows];
  rows.forEach((row, at) => { row.dataset.setting = at; });
  const firstNumber = heads.findIndex((head) => head.textContent.trim() === "J/token");
  const table = new DataTable(place, {
    paging: false, autoWidth: false, order: [[firstNumber, "asc"]],
    layout: { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null },
    columnDefs: [
      { targets: heads.flatMap((head, i) => head.classList.contains("n") ? [i] : []), type: "known" },
      { targets: heads.flatMap((head, i) => head.classList.contains("more") ? [i] : []), visible: false },
    ],
  });
  const count = element("output", { id: "count" });
  const showCount = () => {
    const shown = table.rows({ search: "applied" }).count();
    count.textContent = shown === rows.length ? `${shown} settings` : `${shown} of ${rows.length} settings`;
  };
  table.on("draw", showCount);
  const search = element("input", { type: "search", id: "search", placeholder: "batch or engine" });
  search.addEventListener("input", () => table.search(search.value).draw());
  document.getElementById("tools").append(
    element("label", {}, "find ", search), columnsAndFilters(table, heads, rows), count);
  showCount();
  return table;
};

// one line a column: whether it is shown, and which rows are, by its values or its least and most
const columnsAndFilters = (table, heads, rows) => {
  const kept = heads.map(() => null);
  table.search.fixed("columns", (_, __, at) => kept.every((keeps) => keeps === null || keeps(at)));
  const lines = heads.map((head, i) => {
    const name = head.textContent.trim();
    const box = element("input", { type: "checkbox", checked: table.column(i).visible() });
    box.addEventListener("change", () => table.column(i).visible(box.checked));
    const texts = table.column(i, { order: "index" }).nodes().toArray().map((cell) => cell.textContent.trim());
    const values = texts.map((text, at) => (table.cell(at, i).node().dataset.order ?? text));
    const keep = (of) => { kept[i] = of; table.draw(); };
    const distinct = [...new Set(texts)];
    const filter = distinct.length <= 30 && i <= figures.axes.length
      ? menu([["", "all"], ...distinct.map((text, k) => [String(k), text])], "",
        (k) => keep(k === "" ? null : (at) => texts[at] === distinct[Number(k)]))
      : head.classList.contains("n") ? range(values, keep) : "";
    return element("div", {}, element("label", {}, box, ` ${name}`), filter);
  });
  return element("details", { id: "columns" }, element("summary", { textContent: "Columns and filters" }),
    element("div", { className: "columns" }, ...lines));
};
const range = (values, keep) => {
  const [least, most] = ["least", "most"].map((placeholder) =>
    element("input", { type: "number", step: "any", placeholder }));
  const changed = () => {
    const bounds = [least, most].map((input) => input.value === "" ? null : Number(input.value));
    keep(bounds.every((bound) => bound === null) ? null : (at) => values[at] !== ""
      && (bounds[0] === null || Number(values[at]) >= bounds[0]) && (bounds[1] === null || Number(values[at]) <= bounds[1]));
  };
  [least, most].forEach((input) => input.addEventListener("input", changed));
  return element("span", {}, least, " to ", most);
};

// --- charts ---------------------------------------------------------------------------------------

// expressions are interpreted and styles stand in the page, so that the policy needs neither eval nor styles of others
const options = { actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
const NARROW = 560; // pixels, below which a legend stands under its chart
const draw = (place, spec) => {
  if (place.clientWidth < NARROW) spec.config.legend.orient = "bottom";
  return vegaEmbed(place, spec, options).catch((error) => {
    console.error(error);
    place.textContent = `This figure could not be drawn: ${error}`;
  });
};

// the low end of a bar stands at the axis of its middle
const LOW = { low: "value", other_low: "other" };
// as `fill` of analysis/charts.py: rows, and by field the title and the order of values; no title, no legend
const fill = (template, of) => {
  const spec = structuredClone(template);
  const visit = (part) => {
    if (Array.isArray(part)) part.forEach(visit);
    else if (part !== null && typeof part === "object") {
      if ("layer" in part && !of.joined) part.layer = part.layer.filter((one) => one.name !== "through");
      const named = LOW[part.field] ?? part.field;
      if (named in of.titles && "title" in part) part.title = of.titles[named];
      if (named === "value" && of.log && part.scale && "zero" in part.scale) part.scale = { type: "log" };
      if (part.field in of.orders && "sort" in part) order(part, of.orders[part.field], of.width);
      Object.values(part).forEach(visit);
    }
  };
  visit(spec);
  (spec.spec ?? spec).width = of.width;
  if ("columns" in spec) spec.columns = of.columns;
  spec.datasets = of.datasets;
  return spec;
};
const order = (channel, values, width) => {
  channel.sort = values;
  if (channel.scale && "range" in channel.scale) {
    channel.scale = { domain: values,
      ...(values.length <= charts.palette.length ? { range: charts.palette } : { scheme: "viridis" }) };
    if (channel.title === null) channel.legend = null;
  }
  if (channel.axis && "labelAngle" in channel.axis) {
    const letters = values.reduce((sum, value) => sum + value.length + 2, 0);
    channel.axis.labelAngle = letters * 5.5 > width ? -40 : 0;
  }
};

const axes = charts.axes.map((axis) => axis.name);
const axisNamed = (name) => charts.axes.find((axis) => axis.name === name);
const inWords = (at) => charts.axes.map((axis, i) => `${axis.heading} ${charts.settings[at][i]}`).join(", ");
// half of a bar: the expanded uncertainty (k = 2) of a mean where a figure has one, else a standard deviation
const half = (setting, column) => {
  const { mean, sd } = setting.means[column];
  const own = setting.means[column.replace(/_(j|w)$/, "_expanded_u_$1")];
  if (mean === null || own === setting.means[column]) return sd;
  return own === undefined || own.mean === null ? null : Math.hypot(own.mean, 2 * (sd ?? 0) / Math.sqrt(Math.max(1, setting.n)));
};
const chosen = {
  view: "lines", metric: charts.metrics[0]?.column, log: false, against: 0, kind: 0, ...charts.start,
  fixed: Object.fromEntries(axes.map((name, i) => [name, charts.least < 0 ? "" : charts.settings[charts.least][i]])),
};
const metricNamed = (column) => charts.metrics.find((one) => one.column === column);
const simulated = (at) => figures.results[at].simulated;
const titled = (metric, marks) => `${marks && metric.power ? "~ " : ""}${metric.unit || metric.title}`;

// settings of the chosen kind; what has no place on the chart stands at its chosen value
const shown = (others) => figures.results.flatMap((setting, at) => {
  const of = charts.kind_of[at];
  const fits = others.every((name) => chosen.fixed[name] === "" || charts.settings[at][axes.indexOf(name)] === chosen.fixed[name]);
  return fits && (of === chosen.kind || (of < 0 && chosen.view === "map")) ? [at] : [];
});

const filledChart = (width) => {
  const metric = metricNamed(chosen.metric);
  const at = { x: chosen.x, color: chosen.color, panel: chosen.facet };
  const others = axes.filter((name) => !Object.values(at).includes(name));
  const text = (i, name) => charts.settings[i][axes.indexOf(name)];
  const rows = shown(others).map((i) => {
    const setting = figures.results[i];
    const value = setting.means[metric.column]?.mean ?? null;
    const bar = value === null ? null : half(setting, metric.column);
    return {
      x: text(i, at.x), color: at.color === null ? "" : text(i, at.color),
      panel: at.panel === null ? "" : `${axisNamed(at.panel).heading} ${text(i, at.panel)}`,
      line: others.map((name) => text(i, name)).join(", "), setting: inWords(i), n: setting.n, value, half: bar,
      low: value === null ? null : value - (bar ?? 0) > 0 ? value - (bar ?? 0) : value,
      high: value === null ? null : value + (bar ?? 0),
      shown: value === null ? "-" : String(Number(value.toPrecision(3))),
      why: value === null ? setting.reasons.join(", ") || "not measured" : null,
    };
  });
  const there = (name, field, named = (value) => value) => name === null ? [""]
    : axisNamed(name).values.map(named).filter((value) => rows.some((row) => row[field] === value));
  const panels = there(at.panel, "panel", (value) => `${axisNamed(at.panel).heading} ${value}`);
  const columns = Math.max(1, Math.min(panels.length, Math.floor(width / 300)));
  const title = (name) => name === null ? null : axisNamed(name).heading;
  return fill(charts.templates[chosen.view], {
    datasets: { settings: rows }, joined: chosen.view === "lines" && axisNamed(at.x).numeric, columns,
    log: chosen.log && chosen.view === "lines",
    width: Math.max(160, Math.min(560, Math.floor((width - (at.color === null || width < NARROW ? 20 : 130)) / columns) - 70)),
    titles: { x: title(at.x), color: title(at.color), value: titled(metric, figures.results.some((one) => one.simulated)) },
    orders: { x: there(at.x, "x"), color: there(at.color, "color"), panel: panels },
  });
};
const filledFront = (width) => {
  const front = figures.fronts[chosen.against];
  const marks = figures.simulated;
  const rows = front.candidates.map((one) => ({
    setting: Object.entries(one.chosen).map(([name, value]) => `${name} ${value}`).join(", "), state: one.state,
    value: one.energy.mean, low: one.energy.low ?? one.energy.mean, high: one.energy.high ?? one.energy.mean,
    other: one.other.mean, other_low: one.other.low ?? one.other.mean, other_high: one.other.high ?? one.other.mean,
  })).sort((a, b) => a.other - b.other);
  return fill(charts.templates.front, {
    datasets: { settings: rows }, titles: { value: titled(metricNamed(front.metric), marks), other: titled(metricNamed(front.against), marks) },
    orders: {}, joined: true, width: Math.max(160, Math.min(760, width - (width < NARROW ? 90 : 220))),
  });
};

const NOTES = {
  lines: "Points are means; bars are the expanded uncertainty (k = 2) of joules and watts, else one standard deviation over repeats.",
  map: "Cells are means. Grey cells have none; they say why.",
  front: "Means with 95 % intervals. Dominated: another setting is established to be better in both. Not established: one is by its means, and it may be chance.",
};
const drawChart = async () => {
  const place = document.getElementById("chart");
  const front = chosen.view === "front";
  const refused = front ? figures.fronts[chosen.against].refused : null;
  document.getElementById("chart-note").textContent = refused ?? `${NOTES[chosen.view]} Watts from ${charts.kinds[chosen.kind]}.`;
  place.replaceChildren();
  if (refused === null) {
    const width = place.clientWidth;
    place.spec = front ? filledFront(width) : filledChart(width); // kept for whoever looks: what is drawn
    await draw(place, place.spec);
  }
};
const drawPlaces = () => {
  const changed = (name) => (value) => { chosen[name] = value; drawPlaces(); drawChart(); };
  const numbered = (name) => (value) => changed(name)(Number(value));
  const orNone = (name) => (value) => changed(name)(value === "" ? null : value);
  const field = (name, text, made) => Object.assign(element("label", {}, `${text} `, made), { id: `place-${name}` });
  const views = [["lines", "lines"], ["map", "heat map"], ...(figures.fronts.length ? [["front", "Pareto front"]] : [])];
  const names = (taken) => charts.axes.filter((axis) => !taken.includes(axis.name)).map((axis) => [axis.name, axis.heading]);
  const fields = [field("view", "view", menu(views, chosen.view, changed("view")))];
  if (chosen.view === "front") {
    const against = figures.fronts.map((front, i) => [String(i), metricNamed(front.against).title]);
    fields.push(field("against", "energy per token against", menu(against, String(chosen.against), numbered("against"))));
  } else {
    if (chosen.color === chosen.x) chosen.color = null;
    if ([chosen.x, chosen.color].includes(chosen.facet)) chosen.facet = null;
    fields.push(
      field("metric", "figure", menu(charts.metrics.map((one) => [one.column, one.title]), chosen.metric, changed("metric"))),
      field("x", "x", menu(names([]), chosen.x, changed("x"))),
      field("color", chosen.view === "map" ? "y" : "colour", menu([["", "none"], ...names([chosen.x])], chosen.color ?? "", orNone("color"))),
      field("facet", "panels", menu([["", "none"], ...names([chosen.x, chosen.color])], chosen.facet ?? "", orNone("facet"))));
    const placed = [chosen.x, chosen.color, chosen.facet];
    charts.axes.filter((axis) => !placed.includes(axis.name)).forEach((axis) => {
      const all = chosen.view === "map" ? [] : [["", "all"]];
      fields.push(field(`fixed-${axis.name}`, axis.heading, menu([...all, ...axis.values.map((value) => [value, value])],
        chosen.fixed[axis.name], (value) => { chosen.fixed[axis.name] = value; drawChart(); })));
    });
  }
  if (chosen.view === "lines") {
    const scales = [["", "linear"], ["log", "logarithmic"]];
    fields.push(field("log", "scale", menu(scales, chosen.log ? "log" : "", (value) => changed("log")(value !== ""))));
  }
  if (charts.kinds.length > 1 && chosen.view !== "front") {
    const kinds = charts.kinds.map((kind, i) => [String(i), kind]);
    fields.push(field("kind", "watts from", menu(kinds, String(chosen.kind), numbered("kind"))));
  }
  document.getElementById("places").replaceChildren(...fields);
};

// --- power over time ------------------------------------------------------------------------------

const FULL = 65535;
const unpacked = (device) => {
  const bytes = Uint8Array.from(atob(device.data), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Array.from({ length: device.bins }, (_, bin) => {
    const [seconds, power_w, lowest_w, highest_w] = device.ranges.map(([low, high], column) =>
      low + view.getUint16(2 * (column * device.bins + bin), true) / FULL * (high - low));
    return { gpu: device.name, seconds, power_w, lowest_w, highest_w };
  });
};
const drawTimeline = (at) => {
  const place = document.getElementById("timeline");
  const one = traces.points[at];
  const { text, subtitle, watts, seconds } = one.titles;
  const spec = fill(traces.template, {
    datasets: { power: one.devices.flatMap(unpacked),
      spans: one.spans.map(([phase, batch, start_s, end_s]) => ({ phase, batch, start_s, end_s })) },
    titles: { power_w: watts, lowest_w: watts, seconds }, orders: {}, joined: true,
    width: Math.max(200, Math.min(760, place.clientWidth - (place.clientWidth < NARROW ? 90 : 220))),
  });
  const letters = Math.floor(Math.max(place.clientWidth - 40, 200) / 6.2);
  spec.title = { ...spec.title, text, subtitle: subtitle.match(new RegExp(`.{1,${letters}}(\\s|$)`, "g")) ?? subtitle };
  return draw(place, spec);
};
const drawRuns = () => {
  const select = document.getElementById("run");
  traces.points.forEach((one, at) => select.append(element("option", { value: String(at), textContent: `${one.chosen} (${one.point_id})` })));
  select.addEventListener("change", () => drawTimeline(Number(select.value)));
  const best = Math.max(0, traces.points.findIndex((one) => one.setting === charts.least));
  select.value = String(best);
  document.querySelectorAll("#table tbody tr").forEach((row) => {
    const at = traces.points.findIndex((one) => one.setting === Number(row.dataset.setting));
    if (at < 0) return;
    row.tabIndex = 0;
    row.title = "show its power over time";
    const show = () => {
      select.value = String(at);
      drawTimeline(at);
      document.getElementById("timeline").closest("section").scrollIntoView({ behavior: "smooth" });
    };
    row.addEventListener("click", show);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") show(); });
  });
  return drawTimeline(best);
};

// --- what begins it all, and paper ----------------------------------------------------------------

const begin = async () => {
  drawTable();
  const drawn = [];
  if (document.getElementById("chart") && charts.metrics.length) {
    drawPlaces();
    drawn.push(drawChart());
  }
  if (document.getElementById("run")) drawn.push(drawRuns());
  await Promise.all(drawn);
  performance.mark("ready");
  document.documentElement.dataset.ready = "yes";
};
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("#details details:not([open])")];
  folded.forEach((one) => { one.open = true; });
});
addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
begin();
