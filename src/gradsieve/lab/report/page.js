"use strict";
// Choices of the page, shared by all figures; `report` is what gradsieve has written.
const report = JSON.parse(document.getElementById("report").textContent);
const ALL_LAYERS = report.allLayers;
const choice = { ...report.choice, scale: "default", step: Infinity };
const views = new Map();
const ERRORS_ONLY = 1;

const element = (id) => document.getElementById(id);

// Columns as gradsieve packs them; words are run-length coded.
function unpacked(columns) {
  const rows = [];
  for (const [name, column] of Object.entries(columns)) {
    const values = Array.isArray(column)
      ? column
      : column.runs.flatMap(([word, count]) => Array(count).fill(column.words[word]));
    values.forEach((value, place) => {
      (rows[place] ??= {})[name] = value;
    });
  }
  return rows;
}

const data = Object.fromEntries(
  Object.entries(report.data).map(([name, columns]) => [name, unpacked(columns)]),
);

// Of the chosen run, kind and layer; empty where nothing was counted.
const layerOfHistogram = () => (choice.layer === ALL_LAYERS ? report.wholeModel : choice.layer);
const shapes = () => report.shapes[choice.run]?.[choice.kind]?.[layerOfHistogram()] ?? [];

// The sampled step next before the slider's.
function shapeAt(step) {
  const found = shapes();
  return found.filter((shape) => shape.step <= step).at(-1) ?? found[0];
}

function bars(shape, scale) {
  if (scale === "linear") {
    const [first, width, ...shares] = shape.even;
    return shares.map((share, n) => ({
      low: first + n * width, high: first + (n + 1) * width, share,
    }));
  }
  return [["−", shape.negative], ["+", shape.positive]].flatMap(([sign, [exponent, ...shares]]) =>
    shares.map((share, n) => ({
      low: 2 ** (exponent + n), high: 2 ** (exponent + n + 1), share, sign,
    })));
}

function marks(shape, scale) {
  if (scale === "linear") {
    return ["−2 σ", "−1 σ", "mean", "+1 σ", "+2 σ"].map((name, n) => ({
      at: shape.mean + (n - 2) * shape.deviation, name,
    }));
  }
  return shape.deviation ? [1, 2].map((k) => ({ at: k * shape.deviation, name: `${k} σ` })) : [];
}

function histogramData(scale) {
  const shape = shapeAt(choice.step);
  return { bars: shape ? bars(shape, scale) : [], marks: shape ? marks(shape, scale) : [], words: [] };
}

// Colours of text and lines follow the page's style by themselves.
const config = () => ({
  background: null,
  font: "system-ui, sans-serif",
  view: { stroke: null },
  axis: {
    labelColor: "currentColor", titleColor: "currentColor", domainColor: "currentColor",
    tickColor: "currentColor", gridColor: "currentColor", gridOpacity: 0.18,
  },
  legend: {
    labelColor: "currentColor", titleColor: "currentColor", orient: "top", labelLimit: 260,
    columns: innerWidth < 600 ? 1 : innerWidth < 900 ? 3 : 4,
  },
});

function scaleOf(name) {
  const { charts } = report.figures[name];
  return choice.scale in charts ? choice.scale : Object.keys(charts)[0];
}

async function draw(name) {
  const figure = report.figures[name];
  const scale = scaleOf(name);
  const spec = structuredClone(figure.charts[scale]);
  const rows = name === "histogram" ? histogramData(scale) : data;
  spec.datasets = Object.fromEntries(figure.data.map((used) => [used, rows[used] ?? []]));
  for (const param of spec.params ?? []) {
    if (choice[param.name] !== undefined) param.value = choice[param.name];
  }
  views.get(name)?.view.finalize();
  const { view } = await vegaEmbed(element(`chart-${name}`), spec, {
    actions: false, renderer: "svg", config: config(), logLevel: ERRORS_ONLY,
  });
  views.set(name, { view, scale });
  if (name === "overview") {
    view.addSignalListener("brush", (_, brush) => showSteps(...(brush.step ?? report.extent)));
  }
}

function setSignals(values) {
  for (const { view } of views.values()) {
    const known = view.getState({ signals: () => true, data: () => false }).signals;
    for (const [name, value] of Object.entries(values)) if (name in known) view.signal(name, value);
    view.runAsync();
  }
}

function showSteps(from, to) {
  const [least, most] = report.extent;
  const within = (step) => Math.min(most, Math.max(least, Math.round(step)));
  choice.first = Math.min(within(Math.min(from, to)), most - 1);
  choice.last = Math.max(within(Math.max(from, to)), choice.first + 1);
  element("from-step").value = choice.first;
  element("to-step").value = choice.last;
  setSignals({ first: choice.first, last: choice.last });
}

function showHistogram() {
  const drawn = views.get("histogram");
  if (!drawn) return;
  tellHistogram();
  for (const [name, rows] of Object.entries(histogramData(drawn.scale))) drawn.view.data(name, rows);
  drawn.view.runAsync();
}

function tellHistogram() {
  const sampled = shapes();
  const shape = shapeAt(choice.step);
  const slider = element("sampled-step");
  slider.max = Math.max(0, sampled.length - 1);
  slider.value = shape ? sampled.indexOf(shape) : 0;
  const where = `${choice.run}, ${choice.kind} of ${layerOfHistogram()}`;
  const share = (percent) => (percent === null ? "– (bins too coarse)" : `${percent.toPrecision(3)} %`);
  const words = shape
    ? `step ${shape.step}: σ = ${shape.deviation.toPrecision(3)}, mean = ${shape.mean.toPrecision(2)}; `
      + `beyond ±1 σ ${share(shape.beyond[0])}, beyond ±2 σ ${share(shape.beyond[1])}`
    : "nothing was counted";
  slider.setAttribute("aria-valuetext", words);
  element("sampled-words").textContent = `${where}, ${words}`;
}

async function drawAll() {
  if (report.figures.histogram) tellHistogram();
  await Promise.all(Object.keys(report.figures).map(draw));
}

function onChange(id, react) {
  element(id)?.addEventListener("input", (event) => react(event.target.value));
}

onChange("run", (run) => { choice.run = run; setSignals({ run }); showHistogram(); });
onChange("layer", (layer) => { choice.layer = layer; setSignals({ layer }); showHistogram(); });
onChange("kind", (kind) => { choice.kind = kind; showHistogram(); });
onChange("sampled-step", (place) => { choice.step = shapes()[place]?.step ?? Infinity; showHistogram(); });
for (const id of ["from-step", "to-step"]) {
  element(id)?.addEventListener("change", () =>
    showSteps(Number(element("from-step").value), Number(element("to-step").value)));
}
element("all-steps")?.addEventListener("click", () => {
  showSteps(...report.extent);
  if (report.figures.overview) draw("overview");
});
for (const radio of document.querySelectorAll("input[name=scale]")) {
  radio.addEventListener("input", () => { choice.scale = radio.value; drawAll(); });
}
element("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
