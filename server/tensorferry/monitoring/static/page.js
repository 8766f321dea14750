/* The page: it listens to the server, and shows what the store knows. Names that came from outside (models,
   versions, labels, reasons) are only ever text nodes. */

const $ = (id) => document.getElementById(id);
const store = new Store();
const STALE_AFTER_MS = 3500;
const RETRY_MS = 3000;

/* -- the connection ---------------------------------------------------------------------------- */

const connection = { heardAt: null, since: performance.now(), refusal: "", source: null };

function listen() {
  const source = new EventSource("/live/events");
  connection.source = source;
  source.addEventListener("history", (event) => {
    store.replace(JSON.parse(event.data));
    heard();
  });
  source.addEventListener("message", (event) => {
    store.add(JSON.parse(event.data));
    heard();
  });
  source.addEventListener("error", () => {
    // A connection that broke is made again by the browser; one that was refused is not.
    if (source.readyState === EventSource.CLOSED) {
      askWhy();
      setTimeout(listen, RETRY_MS);
    }
    showConnection();
  });
}

/* An EventSource doesn't tell what the server said when it refused: ask again, to be able to say it. */
function askWhy() {
  const stop = new AbortController();
  fetch("/live/events", { signal: stop.signal })
    .then((answer) => (answer.ok ? "" : answer.text()))
    .then((text) => (connection.refusal = text.trim().slice(0, 200)))
    .catch(() => (connection.refusal = ""))
    .finally(() => stop.abort());
}

function heard() {
  connection.heardAt = performance.now();
  connection.refusal = "";
  requestShow();
}

/* What is wrong with the connection, or null. */
function connectionFinding() {
  const silentMs = performance.now() - (connection.heardAt === null ? connection.since : connection.heardAt);
  if (silentMs < STALE_AFTER_MS) return null;
  const seconds = Math.round(silentMs / 1000);
  const isOpen = connection.source.readyState === EventSource.OPEN;
  const text = isOpen ? `No news from the server for ${seconds} s` : `No connection to the server for ${seconds} s`;
  const hint = connection.refusal || "What is shown below is old. The page goes on trying.";
  return { level: "bad", kind: "connection", text, hint };
}

function showConnection() {
  const isStale = connectionFinding() !== null;
  const state = isStale ? "lost" : connection.heardAt === null ? "connecting" : "live";
  $("connection").dataset.state = state;
  setText($("connection"), { live: "live", connecting: "connecting", lost: "no data" }[state]);
  document.body.classList.toggle("stale", isStale);
}

/* -- showing ----------------------------------------------------------------------------------- */

let isShowPending = false;

function requestShow() {
  if (isShowPending || document.hidden) return;
  isShowPending = true;
  requestAnimationFrame(() => {
    isShowPending = false;
    show();
  });
}

function show() {
  showConnection();
  const broken = connectionFinding();
  const found = findingsOf(store);
  const isIll = broken || found.some((each) => each.level === "bad");
  // What was true before the silence may not be now: the silence is the finding.
  showFindings(broken ? [broken] : found);
  document.title = (isIll ? "✕ " : "") + "Tensorferry";
  if (!store.latest) return;
  showServer(store.latest);
  showGpus(store.latest);
  showModels(store.latest, new Set(found.filter((each) => each.level === "bad").map((each) => each.key)));
  showDetail();
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

let announced = "";

function showFindings(found) {
  const marks = { bad: "✕", warn: "!", good: "✓" };
  const items = found.map((each) => {
    const words = element("span", {}, each.text);
    if (each.hint) words.append(element("em", {}, " – " + each.hint));
    return element("li", { class: each.level }, element("b", { "aria-hidden": "true" }, marks[each.level]), words);
  });
  $("findings").replaceChildren(...items);
  // Read out only what is new, not each number that changes.
  const kinds = found.map((each) => each.kind).join("\n");
  if (kinds !== announced) $("announced").textContent = found.map((each) => each.text).join(". ");
  announced = kinds;
}

/* Label, value, and whether it is an alarm. */
function serverTiles(frame) {
  const { server, total } = frame;
  return [
    ["Ready", server.ready === null ? NONE : server.ready ? "yes" : "no", server.ready === false],
    ["Requests/s", count(total.requests_per_s)],
    ["Refused/s", count(total.refused_per_s), total.refused_per_s > 0],
    ["Failed/s", count(total.failures_per_s), total.failures_per_s > 0],
    ["Late/s", count(total.late_per_s), total.late_per_s > 0],
    ["Calls open", count(server.calls)],
    ["Connections", count(server.connections)],
    ["Bytes in flight", bytes(server.in_flight_bytes)],
    ["Bytes unsent", bytes(server.unsent_bytes)],
    ["Loop lag p99", ms(server.loop_lag_p99_ms), server.loop_lag_p99_ms > 50],
    ["CPU cores", count(server.cpu_cores)],
    ["Memory", bytes(server.rss_bytes)],
  ];
}

function showServer(frame) {
  const { version, transport, processes } = frame.server;
  const about = [version, transport, processes && `${processes} process${processes === 1 ? "" : "es"}`];
  setText($("about"), about.filter(Boolean).join(" · "));
  const tiles = serverTiles(frame).map(([label, value, isAlarm]) =>
    element("div", {}, element("dt", { title: label }, label), element("dd", { class: isAlarm ? "alarm" : "" }, value)));
  $("server").replaceChildren(...tiles);
}

/* What comes before a value, the value, what comes after, and whether it is an alarm; null: it isn't known. */
function gpuParts(gpu) {
  const { memory_used_bytes: used, memory_total_bytes: total, throttled } = gpu;
  return [
    gpu.utilization === null ? null : ["busy", percent(gpu.utilization)],
    total === null ? null : ["memory", bytes(used), `of ${bytes(total)}`, used / total > FULL_MEMORY],
    gpu.power_w === null ? null : ["power", `${Math.round(gpu.power_w)} W`, gpu.power_limit_w === null ? "" : `of ${Math.round(gpu.power_limit_w)} W`],
    gpu.temperature_c === null ? null : ["", `${Math.round(gpu.temperature_c)} °C`],
    throttled.length ? slowedBy(throttled) : null,
  ];
}

function slowedBy(reasons) {
  const faults = reasons.filter(isFault).map((reason) => THROTTLES[reason] || reason);
  return faults.length ? ["slowed by", faults.join(", "), "", true] : ["at its", "power limit"];
}

function showGpus(frame) {
  const gpus = frame.gpus || [];
  $("gpus").hidden = !gpus.length;
  $("gpus").replaceChildren(...gpus.map((gpu) => {
    const parts = gpuParts(gpu).map((part) => {
      if (!part) return element("span", {});
      const [before, value, after, isAlarm] = part;
      return element("span", { class: isAlarm ? "alarm" : "" }, before ? before + " " : "", element("b", { class: "value" }, value), after ? " " + after : "");
    });
    return element("li", { title: gpu.uuid }, element("span", {}, element("b", { class: "value" }, gpu.device), " " + gpu.name), ...parts);
  }));
}

/* -- the models -------------------------------------------------------------------------------- */

const rows = new Map();
let chosen = decodeURIComponent(location.hash.slice(1));
let isChosenByHand = chosen !== "";

function choose(key) {
  chosen = key;
  isChosenByHand = true;
  history.replaceState(null, "", "#" + encodeURIComponent(key));
  requestShow();
}

/* Unless somebody chose: the first that is ill, else the busiest; and it stays so. */
function ensureChosen(frame, ill) {
  if (frame.byKey.has(chosen) && (isChosenByHand || ill.has(chosen) || !frame.models.some((each) => ill.has(keyOf(each))))) return;
  if (!frame.models.length) return;
  const busiest = frame.models.reduce((a, b) => ((b.requests_per_s || 0) > (a.requests_per_s || 0) ? b : a));
  chosen = keyOf(frame.models.find((each) => ill.has(keyOf(each))) || busiest);
}

function showModels(frame, ill) {
  $("nothing").hidden = frame.models.length > 0;
  $("models").hidden = !frame.models.length;
  ensureChosen(frame, ill);
  const body = $("models").tBodies[0];
  for (const [key, row] of rows) {
    if (frame.byKey.has(key)) continue;
    row.remove();
    rows.delete(key);
  }
  frame.models.forEach((each, index) => {
    const key = keyOf(each);
    if (!rows.has(key)) rows.set(key, newRow(key));
    const row = rows.get(key);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] || null);
    row.className = [key === chosen ? "chosen" : "", ill.has(key) ? "ill" : ""].join(" ").trim();
    fillRow(row, each);
  });
}

function newRow(key) {
  const classes = ["", "number", "wide", "number wide", "number wide", "number", "wide", "number wide", "number wide", "number", "number wide"];
  const row = element("tr", {}, ...classes.map((name) => element("td", { class: name })));
  row.cells[0].append(element("button", { type: "button" }), element("span", {}));
  row.cells[2].append(element("canvas", { "aria-hidden": "true" }));
  row.cells[6].append(element("canvas", { "aria-hidden": "true" }));
  row.addEventListener("click", () => choose(key));
  return row;
}

function fillRow(row, each) {
  const key = keyOf(each);
  const [button, labels] = row.cells[0].children;
  setText(button, keyOf(each));
  button.setAttribute("aria-pressed", String(key === chosen));
  const marks = each.ready === false ? ["not ready", ...each.labels] : each.labels;
  labels.replaceChildren(...marks.map((label) => element("span", { class: "label" }, label)));
  const isSlow = each.objective_ms !== null && each.p99_ms > each.objective_ms;
  setText(row.cells[1], count(each.requests_per_s));
  setText(row.cells[3], percent(each.share));
  setText(row.cells[4], ms(each.p50_ms));
  const p99 = element("span", { class: isSlow ? "alarm" : "" }, ms(each.p99_ms));
  row.cells[5].replaceChildren(p99, ...(each.objective_ms === null ? [] : [element("small", {}, " of " + shortMs(each.objective_ms))]));
  setText(row.cells[7], count(each.waiting));
  setText(row.cells[8], percent(each.busy));
  for (const [cell, rate] of [[row.cells[9], sumOf(each.refusals)], [row.cells[10], sumOf(each.failures)]]) {
    setText(cell, count(rate));
    cell.classList.toggle("alarm", rate > 0);
  }
  const past = (field) => store.frames.map((frame) => (frame.byKey.has(key) ? frame.byKey.get(key)[field] : null));
  sparkline(row.cells[2].firstChild, past("requests_per_s"), null);
  sparkline(row.cells[6].firstChild, past("p99_ms"), each.objective_ms);
}

/* -- beginning --------------------------------------------------------------------------------- */

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (charts) Object.values(charts).forEach((chart) => chart.reset());
  requestShow();
});
document.addEventListener("visibilitychange", requestShow);
setInterval(() => {
  if (connectionFinding() || $("connection").dataset.state === "lost") requestShow();
}, 1000);
listen();
