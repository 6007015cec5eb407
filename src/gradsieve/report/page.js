"use strict";
// Choices of the page, shared by all figures; `report` is what gradsieve has written.
const report = JSON.parse(document.getElementById("report").textContent);
const WHOLE = report.wholeModel;
const choice = { ...report.choice, scale: "default", step: Infinity };
const views = new Map();
const ERRORS_ONLY = 1;

const element = (id) => document.getElementById(id);

// Columns as gradsieve packs them; words are run-length coded.
function unpacked(columns) {
  const names = Object.keys(columns);
  const rows = [];
  for (const name of names) {
    const column = columns[name];
    let values = column;
    if (!Array.isArray(column)) {
      values = column.runs.flatMap(([word, count]) => Array(count).fill(column.words[word]));
    }
    values.forEach((value, place) => {
      (rows[place] ??= {})[name] = value;
    });
  }
  return rows;
}

const data = Object.fromEntries(
  Object.entries(report.data).map(([name, columns]) => [name, unpacked(columns)]),
);

// Of the chosen run, kind and layer, the histogram of the sampled step next before the slider's.
function shapes() {
  const kinds = report.shapes[choice.run] ?? Object.values(report.shapes)[0] ?? {};
  const layers = kinds[choice.kind] ?? {};
  return layers[choice.layer] ?? layers[WHOLE] ?? [];
}

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
    return [-2, -1, 0, 1, 2].map((k) => ({
      at: shape.mean + k * shape.deviation,
      name: k === 0 ? "mean" : `${k > 0 ? "+" : "−"}${Math.abs(k)} σ`,
    }));
  }
  return shape.deviation ? [1, 2].map((k) => ({ at: k * shape.deviation, name: `${k} σ` })) : [];
}

function theme() {
  const style = getComputedStyle(document.documentElement);
  const [ink, rule] = ["--ink", "--rule"].map((name) => style.getPropertyValue(name).trim());
  return {
    background: null,
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { labelColor: ink, titleColor: ink, gridColor: rule, domainColor: rule, tickColor: rule },
    legend: {
      labelColor: ink, titleColor: ink, orient: "top", labelLimit: 260,
      columns: innerWidth < 600 ? 1 : innerWidth < 900 ? 3 : 4,
    },
  };
}

const scaleOf = (figure) => (choice.scale in figure.charts ? choice.scale : Object.keys(figure.charts)[0]);

async function draw(name) {
  const figure = report.figures[name];
  const scale = scaleOf(figure);
  const spec = structuredClone(figure.charts[scale]);
  spec.datasets = Object.fromEntries(figure.data.map((used) => [used, data[used] ?? []]));
  if (name === "histogram") {
    const shape = shapeAt(choice.step);
    Object.assign(spec.datasets, shape ? {
      bars: bars(shape, scale), marks: marks(shape, scale), words: [],
    } : {});
  }
  for (const param of spec.params ?? []) {
    if (param.name in choice && choice[param.name] !== undefined) param.value = choice[param.name];
  }
  views.get(name)?.finalize();
  const embedded = await vegaEmbed(element(`chart-${name}`), spec, {
    actions: false, renderer: "svg", config: theme(), logLevel: ERRORS_ONLY,
  });
  views.set(name, embedded);
  if (name === "overview") followBrush(embedded.view);
}

function followBrush(view) {
  view.addSignalListener("brush", (_, brush) => {
    const [from, to] = brush.step ?? report.extent;
    showSteps(from, to);
  });
}

function showSteps(from, to) {
  choice.first = Math.round(Math.max(report.extent[0], Math.min(from, to - 1)));
  choice.last = Math.round(Math.min(report.extent[1], Math.max(to, choice.first + 1)));
  element("from-step").value = choice.first;
  element("to-step").value = choice.last;
  for (const { view } of views.values()) setSignals(view, { first: choice.first, last: choice.last });
}

function setSignals(view, values) {
  const known = Object.keys(view.getState({ signals: () => true, data: () => false }).signals);
  for (const [name, value] of Object.entries(values)) if (known.includes(name)) view.signal(name, value);
  view.runAsync();
}

function drawHistogram() {
  const figure = report.figures.histogram;
  if (!figure) return;
  const sampled = shapes().map((shape) => shape.step);
  const shape = shapeAt(choice.step);
  const slider = element("sampled-step");
  slider.max = Math.max(0, sampled.length - 1);
  slider.value = shape ? sampled.indexOf(shape.step) : 0;
  slider.setAttribute("aria-valuetext", shape ? `step ${shape.step}` : "none");
  element("sampled-words").textContent = shape
    ? `step ${shape.step}: σ = ${shape.deviation.toPrecision(3)}, mean = ${shape.mean.toPrecision(2)}; beyond ±1 σ `
      + `${shape.beyond[0].toPrecision(3)} %, beyond ±2 σ ${shape.beyond[1].toPrecision(3)} %`
    : "no histogram of this choice";
  draw("histogram");
}

const drawAll = () => Promise.all(Object.keys(report.figures).map((name) =>
  name === "histogram" ? drawHistogram() : draw(name)));

function onChange(id, react) {
  element(id)?.addEventListener("input", (event) => react(event.target.value));
}

onChange("run", (run) => {
  choice.run = run;
  for (const { view } of views.values()) setSignals(view, { run });
  drawHistogram();
});
onChange("layer", (layer) => {
  choice.layer = layer;
  for (const { view } of views.values()) setSignals(view, { layer });
  drawHistogram();
});
onChange("kind", (kind) => { choice.kind = kind; drawHistogram(); });
onChange("sampled-step", (place) => { choice.step = shapes()[place]?.step ?? Infinity; drawHistogram(); });
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
  drawAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
addEventListener("beforeprint", () => { document.documentElement.dataset.theme = "light"; drawAll(); });

drawAll().then(() => { document.documentElement.dataset.drawn = "yes"; });
