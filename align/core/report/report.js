"use strict";
// The report's behaviour: draws curves, browses samples and flips. Everything it shows is in the page's JSON elements;
// text is set with textContent alone, so that no text of a model becomes markup.

const SVG = "http://www.w3.org/2000/svg";
const PAGE = 20; // cards added at a time
const dataOf = id => JSON.parse(document.getElementById(id)?.textContent || "null");

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function shape(tag, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

// Three significant digits, 12.3k, 4e-5: as align/schemas/text.py writes them.
function short(value) {
  if (value === null || !Number.isFinite(value)) return "not finite";
  const size = Math.abs(value);
  const digits = (n, to = 3) => String(Number(n.toPrecision(to)));
  let text;
  if (size >= 999_500) text = size < 999.5e6 ? digits(size / 1e6) + "M" : String(Number(size.toPrecision(3)));
  else if (size >= 9_999.5) text = digits(size / 1e3) + "k";
  else if (size >= 999.5) text = size.toFixed(0);
  else if (size >= 1e-3 || size === 0) text = digits(size);
  else text = Number(size.toPrecision(3)).toExponential();
  return (value < 0 ? "−" : "") + text;
}

const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// --- Curves ---------------------------------------------------------------------------------------------------------

const BOX = { width: 360, height: 200, left: 46, right: 10, top: 10, bottom: 24 };
const view = { smooth: 0.5, axis: "step", hidden: new Set(), zoom: new Map() };
let curves = null;
const drawn = new Map(); // figure -> its redraw

// The mean of the past with weights w^k, not biased towards its start. null (not finite) stays null and counts nowhere.
function smoothed(values, weight) {
  let total = 0, count = 0;
  return values.map(value => {
    if (value === null) return null;
    total = weight * total + value;
    count = weight * count + 1;
    return total / count;
  });
}

// About `about` round numbers, 1, 2 or 5 times a power of ten apart, that span low to high.
function ticks(low, high, about) {
  if (high - low <= 1e-9 * Math.max(Math.abs(low), Math.abs(high))) {
    const reach = Math.max(Math.abs(low), Math.abs(high)) / 2 || 0.5;
    low -= reach;
    high += reach;
  }
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}

// Steps -> the axis chosen: tokens seen by then, from the stage's own num_tokens.
function across(stage, line) {
  const tokens = stage.tokens[line.run];
  if (view.axis !== "tokens" || !tokens) return line.x;
  return line.x.map(step => {
    if (step < tokens.x[0]) return 0;
    let low = 0, high = tokens.x.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (tokens.x[middle] <= step) low = middle;
      else high = middle - 1;
    }
    return tokens.y[low];
  });
}

// The lines of a chart as they are drawn: smoothed where they are measured, without hidden runs.
function linesOf(stage, chart) {
  return chart.lines.filter(line => !view.hidden.has(line.run)).map(line => {
    const soft = line.kind === "train" && !chart.exact && view.smooth > 0 && line.y.length >= 8;
    return { ...line, x: across(stage, line), raw: soft ? line.y : null, y: soft ? smoothed(line.y, view.smooth) : line.y };
  });
}

function drawChart(figure, stage, chart) {
  const svg = figure.querySelector("svg"), output = figure.querySelector("output");
  const lines = linesOf(stage, chart);
  const all = lines.flatMap(line => line.x);
  svg.replaceChildren();
  if (!all.length) return;
  const least = Math.min(...all), most = Math.max(...all);
  const [from, to] = view.zoom.get(stage) ?? [least, Math.max(most, least + 1)];
  const inside = x => x >= from && x <= to;
  const values = [];
  for (const line of lines) {
    const seen = line.y.filter((y, i) => y !== null && inside(line.x[i]));
    values.push(...seen);
    // One wild step must not flatten everything else: of raw values the outer 2 % do not count for the scale.
    const raw = (line.raw ?? []).filter((y, i) => y !== null && inside(line.x[i])).sort((a, b) => a - b);
    if (raw.length) values.push(quantile(raw, 0.02), quantile(raw, 0.98));
  }
  const marks = values.length ? ticks(Math.min(...values), Math.max(...values), 4) : [0, 1];
  const [low, high] = [marks[0], marks[marks.length - 1]];
  const px = x => BOX.left + (x - from) / (to - from) * (BOX.width - BOX.left - BOX.right);
  const py = y => {
    const up = Math.min(1.03, Math.max(-0.03, (y - low) / (high - low)));
    return BOX.height - BOX.bottom - up * (BOX.height - BOX.top - BOX.bottom);
  };

  for (const mark of marks) {
    svg.append(shape("line", { class: "grid", x1: BOX.left, x2: BOX.width - BOX.right, y1: py(mark), y2: py(mark) }));
    svg.append(shape("text", { class: "tick", x: BOX.left - 6, y: py(mark) + 3.5, "text-anchor": "end" }, short(mark)));
  }
  for (const mark of ticks(from, to, 4).filter(inside)) {
    svg.append(shape("text", { class: "tick", x: px(mark), y: BOX.height - 7, "text-anchor": "middle" }, short(mark)));
  }
  const path = (line, ys) => {
    let data = "", pen = "M";
    line.x.forEach((x, i) => {
      if (ys[i] === null || !inside(x)) pen = "M";
      else {
        data += `${pen}${px(x).toFixed(1)},${py(ys[i]).toFixed(1)}`;
        pen = "L";
      }
    });
    return data;
  };
  for (const line of lines) {
    if (line.raw) svg.append(shape("path", { class: `raw run${line.run % 6}`, d: path(line, line.raw) }));
  }
  for (const line of lines) {
    svg.append(shape("path", { class: `line ${line.kind} run${line.run % 6}`, d: path(line, line.y) }));
    const shown = line.x.map((x, i) => [x, line.y[i]]).filter(([x, y]) => y !== null && inside(x));
    if (line.kind === "held" && shown.length <= 40 || shown.length === 1) {
      for (const [x, y] of shown) {
        svg.append(shape("circle", { class: `mark ${line.kind} run${line.run % 6}`, cx: px(x), cy: py(y), r: 2.6 }));
      }
    }
  }
  const cursor = shape("line", { class: "cursor", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
  const band = shape("rect", { class: "band", y: BOX.top, height: BOX.height - BOX.top - BOX.bottom, visibility: "hidden" });
  svg.append(band, cursor);

  const steps = [...new Set(all.filter(inside))].sort((a, b) => a - b);
  figure.chart = { steps, from, to, least, most, px, cursor, band, value: x => (x - BOX.left) / (BOX.width - BOX.left - BOX.right) * (to - from) + from };
  figure.show = at => {
    figure.at = at;
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", px(at));
    cursor.setAttribute("x2", px(at));
    const parts = lines.map(line => {
      const i = nearest(line.x, at);
      const who = [curves.runs.length > 1 ? curves.runs[line.run] : "", line.kind === "held" ? "held out" : ""].filter(Boolean).join(" ");
      // A held-out value far from the cursor would be taken for one of this step.
      const where = line.x[i] === at ? "" : ` at ${short(line.x[i])}`;
      return `${who} ${short(line.y[i])}${where}`.trim();
    });
    output.textContent = `${view.axis} ${at.toLocaleString("en")}: ${parts.join(", ")}`;
  };
}

function nearest(sorted, at) {
  let best = 0;
  sorted.forEach((x, i) => { if (Math.abs(x - at) <= Math.abs(sorted[best] - at)) best = i; });
  return best;
}

function zoomTo(stage, range) {
  if (range && range[1] > range[0]) view.zoom.set(stage, range);
  else view.zoom.delete(stage);
  stage.article.querySelector(".unzoom").hidden = !view.zoom.has(stage);
  redraw();
}

function redraw() {
  for (const draw of drawn.values()) draw();
}

function listen(figure, stage) {
  const svg = figure.querySelector("svg");
  let start = null;
  const place = event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * BOX.width;
    return Math.min(BOX.width - BOX.right, Math.max(BOX.left, x));
  };
  svg.addEventListener("pointerdown", event => {
    start = place(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointermove", event => {
    const { steps, value, band } = figure.chart ?? {};
    if (!steps?.length) return;
    const x = place(event);
    figure.show(steps[nearest(steps, value(x))]);
    if (start === null) return;
    band.setAttribute("visibility", "visible");
    band.setAttribute("x", Math.min(start, x));
    band.setAttribute("width", Math.abs(x - start));
  });
  svg.addEventListener("pointerup", event => {
    const x = place(event), { value } = figure.chart;
    if (start !== null && Math.abs(x - start) > 12) zoomTo(stage, [value(Math.min(start, x)), value(Math.max(start, x))]);
    start = null;
  });
  svg.addEventListener("pointercancel", () => { start = null; redraw(); });
  svg.addEventListener("pointerleave", () => { if (start === null) figure.chart?.cursor.setAttribute("visibility", "hidden"); });
  svg.addEventListener("dblclick", () => zoomTo(stage, null));
  svg.addEventListener("keydown", event => {
    const { steps, from, to, least, most } = figure.chart ?? {};
    if (!steps?.length) return;
    const at = figure.at ?? steps[0], i = nearest(steps, at), wide = to - from;
    const around = (centre, width) => [Math.max(least, centre - width / 2), Math.min(most, centre + width / 2)];
    const page = Math.max(1, Math.round(steps.length / 10));
    const keys = {
      ArrowLeft: () => figure.show(steps[Math.max(0, i - 1)]),
      ArrowRight: () => figure.show(steps[Math.min(steps.length - 1, i + 1)]),
      PageDown: () => figure.show(steps[Math.max(0, i - page)]),
      PageUp: () => figure.show(steps[Math.min(steps.length - 1, i + page)]),
      Home: () => figure.show(steps[0]),
      End: () => figure.show(steps[steps.length - 1]),
      "+": () => zoomTo(stage, around(at, wide / 2)),
      "-": () => zoomTo(stage, wide * 2 >= most - least ? null : around(at, wide * 2)),
      0: () => zoomTo(stage, null),
    };
    const act = keys[event.key === "=" ? "+" : event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    act();
    event.preventDefault();
  });
}

function startCurves() {
  curves = dataOf("curves-data");
  drawn.clear();
  // Charts are drawn when they come near the screen: a run of many stages has a hundred of them.
  const seen = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      drawn.set(target, target.draw);
      target.draw();
    }
  }, { rootMargin: "300px" });
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const stage = curves.stages[figure.dataset.stage], chart = stage.charts[figure.dataset.chart];
    stage.article = figure.closest("article");
    figure.draw = () => drawChart(figure, stage, chart);
    listen(figure, stage);
    seen.observe(figure);
  }
  for (const button of document.querySelectorAll(".unzoom")) {
    button.addEventListener("click", () => zoomTo(curves.stages[button.dataset.stage], null));
  }
  const smooth = document.getElementById("smooth"), axis = document.getElementById("axis");
  const setSmooth = () => {
    view.smooth = Number(smooth.value) / 100;
    smooth.setAttribute("aria-valuetext", view.smooth ? `${smooth.value} percent` : "off");
    redraw();
  };
  smooth?.addEventListener("input", setSmooth);
  if (smooth) setSmooth();
  axis?.addEventListener("change", () => {
    view.axis = axis.value;
    view.zoom.clear();
    for (const button of document.querySelectorAll(".unzoom")) button.hidden = true;
    redraw();
  });
  for (const box of document.querySelectorAll("input[data-run]")) {
    const set = () => {
      view.hidden[box.checked ? "delete" : "add"](Number(box.dataset.run));
      redraw();
    };
    box.addEventListener("change", set);
    if (!box.checked) set();
  }
}

// --- Lists of cards: samples and flips ------------------------------------------------------------------------------

// A list that shows `PAGE` cards, and as many more at each press of its button. form: controls that filter it.
function browse(section, rows, choose, card, words) {
  const form = section.querySelector("form"), list = section.querySelector(".list");
  const count = section.querySelector(".found"), more = section.querySelector(".more");
  let found = [], shown = 0;
  const add = () => {
    const first = shown;
    for (const row of found.slice(shown, shown + PAGE)) list.append(card(row));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    more.textContent = `Show ${Math.min(PAGE, found.length - shown)} more`;
    return list.children[first];
  };
  const update = () => {
    found = choose(rows, new FormData(form));
    list.replaceChildren();
    shown = 0;
    const total = found.reduce((sum, row) => sum + (row.times ?? 1), 0);
    count.textContent = `${plural(total, words)}${total < rows.length ? ` of ${rows.length.toLocaleString("en")}` : ""}`;
    add();
  };
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 120);
  });
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(update, 0));
  more.addEventListener("click", () => add()?.focus());
  update();
  return update;
}

function textBlock(title, text, search, extra = "") {
  const shown = node("p", { dir: "auto", tabindex: "0", role: "group", "aria-label": title });
  marked(shown, text || "", search);
  if (!text) {
    shown.textContent = "nothing";
    shown.className = "note";
  }
  return node("div", { class: `text ${extra}` }, node("h4", {}, title), shown);
}

// Put text into an element, with the words searched for marked.
function marked(element, text, search) {
  if (!search) {
    element.textContent = text;
    return;
  }
  const plain = text.toLowerCase();
  let at = 0;
  for (let i = plain.indexOf(search); i >= 0; i = plain.indexOf(search, at)) {
    element.append(text.slice(at, i), node("mark", {}, text.slice(i, i + search.length)));
    at = i + search.length;
  }
  element.append(text.slice(at));
}

const [RUN, STAGE, STEP, PROMPT, COMPLETION, REWARD, GOLD, PARTS, LENGTH, FINISH, SOURCE, ROWS] = Array(12).keys();

function startSamples() {
  const section = document.getElementById("browser"), data = dataOf("samples-data");
  if (!section || !data) return;
  const form = section.querySelector("form");
  let search = "";
  const choose = (rows, given) => {
    search = String(given.get("search") || "").trim().toLowerCase();
    const from = given.get("from") === "" ? -Infinity : Number(given.get("from"));
    const to = given.get("to") === "" ? Infinity : Number(given.get("to"));
    const [run, stage, kind, source, set] = ["run", "stage", "kind", "source", "rows"].map(name => given.get(name) || "");
    const least = given.get("least") === "" ? -Infinity : Number(given.get("least"));
    const most = given.get("most") === "" ? Infinity : Number(given.get("most"));
    const hits = search ? new Set(data.prompts.flatMap((prompt, i) => prompt.toLowerCase().includes(search) ? [i] : [])) : null;
    const kinds = {
      "": () => true,
      cut: row => row[FINISH] === "length",
      empty: row => !row[COMPLETION].trim(),
      unscored: row => row[REWARD] === null,
    };
    const found = rows.filter(row => row[STEP] >= from && row[STEP] <= to
      && (row[REWARD] === null ? least === -Infinity && most === Infinity : row[REWARD] >= least && row[REWARD] <= most)
      && (!run || row[RUN] === Number(run)) && (!stage || row[STAGE] === stage) && (!set || (set === "held") === Boolean(row[ROWS])) && kinds[kind](row)
      && (!source || row[PROMPT] === Number(source))
      && (!hits || hits.has(row[PROMPT]) || row[COMPLETION].toLowerCase().includes(search)));
    const orders = {
      last: (a, b) => b[STEP] - a[STEP],
      first: (a, b) => a[STEP] - b[STEP],
      best: (a, b) => (b[REWARD] ?? -Infinity) - (a[REWARD] ?? -Infinity) || b[STEP] - a[STEP],
      worst: (a, b) => (a[REWARD] ?? Infinity) - (b[REWARD] ?? Infinity) || b[STEP] - a[STEP],
      longest: (a, b) => b[LENGTH] - a[LENGTH],
      shortest: (a, b) => a[LENGTH] - b[LENGTH],
    };
    return counted(found.sort(orders[given.get("order")] ?? orders.last));
  };
  // Equal completions to one prompt at one step become one card, which says how many there are.
  const counted = found => {
    const cards = new Map();
    for (const row of found) {
      const key = [RUN, STAGE, ROWS, STEP, PROMPT, COMPLETION, REWARD].map(i => row[i]).join("\u0000");
      if (cards.has(key)) cards.get(key).times += 1;
      else cards.set(key, Object.assign([...row], { times: 1 }));
    }
    return [...cards.values()];
  };
  const card = row => {
    const facts = [data.runs?.length > 1 ? data.runs[row[RUN]] : "", row[STAGE], `step ${row[STEP].toLocaleString("en")}`, row[ROWS]].filter(Boolean);
    const scores = node("p", { class: "scores" });
    if (row.times > 1) scores.append(node("span", {}, `${row.times} times`));
    scores.append(node("b", {}, row[REWARD] === null ? "no reward" : `reward ${short(row[REWARD])}`));
    const parts = Object.entries(row[PARTS]);
    for (const [name, value] of parts.length > 1 ? parts : []) scores.append(node("span", {}, `${name} ${value === null ? "–" : short(value)}`));
    if (row[GOLD] !== null) scores.append(node("span", {}, `gold ${short(row[GOLD])}`));
    scores.append(node("span", {}, plural(row[LENGTH], "token") + (row[FINISH] === "length" ? ", cut off" : "")));
    const same = node("button", { type: "button", class: "quiet" }, "All answers to this prompt");
    same.addEventListener("click", () => {
      form.reset();
      form.elements.source.value = row[PROMPT];
      form.elements.order.value = "first";
      setTimeout(update, 0);
      form.scrollIntoView();
      form.elements.search.focus({ preventScroll: true });
    });
    return node("article", { class: "sample", tabindex: "-1" }, node("header", {}, node("h3", {}, facts.join(" · ")), scores),
      textBlock("prompt", data.prompts[row[PROMPT]], search), textBlock("completion", row[COMPLETION], search, "answer"), same);
  };
  form.addEventListener("reset", () => { form.elements.source.value = ""; });
  const update = browse(section, data.rows, choose, card, "completion");
}

function startFlips() {
  const section = document.getElementById("flips"), data = dataOf("flips-data");
  if (!section || !data) return;
  let search = "";
  const choose = (rows, given) => {
    search = String(given.get("search") || "").trim().toLowerCase();
    const [eval_, side] = [given.get("eval"), given.get("side")];
    return rows.filter(row => (!eval_ || row.eval === eval_) && (!side || (side === "lost") === row.change < 0)
      && (!search || [row.prompt, row.baseline, row.candidate].some(text => text.toLowerCase().includes(search))));
  };
  const card = row => {
    const change = `${row.change < 0 ? "worse" : "better"} by ${short(Math.abs(row.change))}`;
    const scores = node("p", { class: "scores" }, node("b", { class: row.change < 0 ? "bad" : "good" }, change));
    const made = node("article", { class: "sample", tabindex: "-1" }, node("header", {}, node("h3", {}, row.eval), scores), textBlock("prompt", row.prompt, search));
    if (row.expected) made.append(textBlock("expected", row.expected, search));
    made.append(node("div", { class: "answers" }, textBlock("baseline", row.baseline, search, "answer"), textBlock("candidate", row.candidate, search, "answer")));
    return made;
  };
  browse(section, data, choose, card, "changed item");
}

// --- A served page follows its run ------------------------------------------------------------------------------------

// Parts marked data-live and the JSON elements are replaced; filters, zoom and the place on the page stay.
async function follow() {
  const state = document.getElementById("live");
  let known = state.dataset.version;
  const ask = async () => {
    try {
      const head = await fetch("/", { method: "HEAD", cache: "no-store" });
      const version = head.headers.get("ETag");
      if (!head.ok || version === known) return head.ok;
      const page = new DOMParser().parseFromString(await (await fetch("/", { cache: "no-store" })).text(), "text/html");
      if (page.querySelectorAll("figure[data-chart]").length !== document.querySelectorAll("figure[data-chart]").length) {
        location.reload(); // new curves: the page has other parts
        return true;
      }
      for (const part of document.querySelectorAll("[data-live]")) {
        const fresh = page.getElementById(part.id);
        if (fresh) part.replaceChildren(...fresh.childNodes);
      }
      const fresh = JSON.parse(page.getElementById("curves-data").textContent);
      fresh.stages.forEach((stage, i) => Object.assign(curves.stages[i], stage));
      for (const figure of document.querySelectorAll("figure[data-chart]")) {
        const stage = curves.stages[figure.dataset.stage];
        figure.draw = () => drawChart(figure, stage, stage.charts[figure.dataset.chart]);
        if (drawn.has(figure)) drawn.set(figure, figure.draw);
        const same = page.getElementById(figure.id);
        figure.querySelector("figcaption").replaceChildren(...same.querySelector("figcaption").childNodes);
      }
      redraw();
      known = version;
      return true;
    } catch {
      return false;
    }
  };
  for (;;) {
    await new Promise(done => setTimeout(done, 3000));
    if (document.hidden) continue;
    const there = await ask();
    state.textContent = there ? `live · checked ${new Date().toLocaleTimeString()}` : "the server has stopped; this is the last state";
  }
}

document.documentElement.classList.add("scripted");
startCurves();
startFlips();
// Samples are the largest part: they are read after the first picture is on the screen.
requestAnimationFrame(() => setTimeout(startSamples, 0));
if (document.getElementById("live")) follow();
