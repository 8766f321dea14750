/* One version of a model in detail: its nine charts. The page says which one is chosen. */

const STACK = ["blue", "orange", "green", "pink", "sky", "red", "yellow", "grey"];
const WARM = ["orange", "red", "pink", "grey"];
const DEPARTURES = ["full", "preferred", "idle", "hold", "deadline", "retry"];
const REFUSALS = ["latency_objective", "max_queue_size", "max_inflight_bytes", "deadline"];
const FAILURES = ["BACKEND", "EXPIRED", "CANCELED", "OTHER", "REJECTED"];
let charts = null;

function makeCharts() {
  const parent = $("charts");
  const time = (options) => new TimeChart(parent, options);
  return {
    pace: time({ title: "Requests answered", hint: "Each second; and the rows that were in them." }),
    latency: time({ title: "How long answers take", hint: "From receipt to answer, in ms; each step up is ten times more. Red ground: p99 is above the objective.", format: ms, isLog: true, alarm: { series: 2, above: 3 } }),
    sizes: new BatchSizes(parent),
    queue: time({ title: "Waiting requests and busy streams", hint: "Requests in the queue (left); share of the streams' time spent in runs (right). Near 100 % there is no room.", right: { format: percent, max: 1 } }),
    departures: time({ title: "Why batches left", hint: "Batches each second. Full: load fills them. Idle: nothing to wait for. Deadline: too little time left.", stacked: true, format: perSecond, nothing: "no batch ran in the last 5 minutes" }),
    refusals: time({ title: "Refused without running", hint: "Requests each second, by reason. Latency_objective: they would have been late.", stacked: true, format: perSecond, nothing: "nothing was refused in the last 5 minutes" }),
    failures: time({ title: "Failed or late", hint: "Requests each second: no answer, by reason; or an answer past its deadline or the objective.", format: perSecond, nothing: "nothing failed or was late in the last 5 minutes" }),
    versions: time({ title: "Who answers: versions and their share", hint: "Requests each second, by version and its labels.", stacked: true, format: perSecond, nothing: "nothing was asked of this model in the last 5 minutes" }),
    time: time({ title: "Where the time goes", hint: "In ms, each step up ten times more: the wait in the queue (p99), the hold for more (p50), the run (p50).", format: ms, isLog: true }),
  };
}

const perSecond = (value) => count(value) + "/s";

function showDetail() {
  const now = store.latest.byKey.get(chosen);
  $("charts").hidden = !now;
  if (!now) {
    showDevice(null);
    return setText($("detail-title"), "");
  }
  setText($("detail-title"), keyOf(now) + (now.labels.length ? ` (${now.labels.join(", ")})` : ""));
  showDevice(now.device);
  charts = charts || makeCharts();
  showLines(now);
  showStacks();
  showSizes(now);
  showVersions(now);
}

/* How a version fills its GPU. The greatest of the three shares is what bounds it. */
function showDevice(device) {
  $("device").hidden = !device;
  if (!device) return;
  const parts = [
    `On ${device.names.join(", ")}: runs ${percent(device.run)} of the time, copies in ${percent(device.copy_in)}, out ${percent(device.copy_out)}`,
    device.graphs === null ? "" : `CUDA graphs for ${percent(device.graphs)} of the batches`,
    device.padded_rows ? `${percent(device.padded_rows)} of the rows are padding` : "",
    `holds ${bytes(device.memory_bytes)}`,
  ];
  setText($("device"), parts.filter(Boolean).join(" · "));
}

/* Show fields of the chosen version: [field, label, colour, more]. */
function lines(chart, fields) {
  const series = fields.map(([key, label, colour, more]) => ({ key, label, colour, ...more }));
  const [xs, columns] = store.columns(fields.map(([field]) => (frame) => frame.byKey.has(chosen) ? frame.byKey.get(chosen)[field] : null));
  chart.update(xs, series, columns);
}

function showLines(now) {
  lines(charts.pace, [
    ["rows_per_s", "rows", "orange", { format: perSecond, width: 1.5 }],
    ["requests_per_s", "requests", "blue", { format: perSecond }],
  ]);
  const quantiles = [["p50_ms", "p50", "sky", { width: 1.5 }], ["p99_ms", "p99", "blue", {}]];
  if (now.objective_ms !== null) quantiles.push(["objective_ms", "objective", "red", { dash: [6, 4], width: 1.5, format: shortMs }]);
  charts.latency.alarm.above = quantiles.length;
  lines(charts.latency, quantiles);
  const streams = now.streams === null ? "streams" : `${now.streams} stream${now.streams === 1 ? "" : "s"}`;
  lines(charts.queue, [
    ["waiting", "waiting", "blue", {}],
    ["busy", `${streams} busy`, "orange", { scale: "right", format: percent, width: 1.5 }],
  ]);
  lines(charts.time, [
    ["queue_p99_ms", "queue p99", "blue", {}],
    ["run_p50_ms", "run p50", "green", {}],
    ["hold_p50_ms", "hold p50", "orange", { width: 1.5 }],
  ]);
}

/* The reasons of a field that occurred in what is shown, in a fixed order and colour, and unknown ones after. */
function reasonsOf(field, known, colours = STACK) {
  const seen = new Set();
  store.parts(chosen, store.frames).forEach((part) => Object.keys(part[field]).forEach((reason) => seen.add(reason)));
  const all = [...known, ...[...seen].filter((reason) => !known.includes(reason))];
  return all.map((key, index) => ({ key, label: key, colour: colours[index % colours.length], title: REASONS[key] || key }))
    .filter((each) => seen.has(each.key));
}

const rateOf = (field, reason) => (frame) => {
  const part = frame.byKey.get(chosen);
  return part ? part[field][reason] || 0 : null;
};

function showStacks() {
  for (const [chart, field, known] of [[charts.departures, "departures", DEPARTURES], [charts.refusals, "refusals", REFUSALS]]) {
    const series = reasonsOf(field, known, field === "refusals" ? WARM : STACK);
    const [xs, columns] = store.columns(series.map((each) => rateOf(field, each.key)));
    chart.update(xs, series, columns);
  }
  const failures = reasonsOf("failures", FAILURES);
  const late = { key: "late", label: "late", colour: "red", dash: [6, 4], title: REASONS.late };
  const read = failures.map((each) => rateOf("failures", each.key));
  read.push((frame) => (frame.byKey.has(chosen) ? frame.byKey.get(chosen).late_per_s : null));
  const [xs, columns] = store.columns(read);
  charts.failures.update(xs, [...failures, late], columns);
}

function showSizes(now) {
  if (!now.batch_rows) return charts.sizes.say("batch sizes aren't known");
  const { bounds, counts } = now.batch_rows;
  const minute = counts.map(() => 0);
  store.parts(chosen, store.recent(60)).forEach((part) => {
    if (part.batch_rows) part.batch_rows.counts.forEach((each, index) => (minute[index] += each));
  });
  charts.sizes.update(bounds, minute, counts);
}

function showVersions(now) {
  const versions = store.latest.models.filter((each) => each.model === now.model);
  const series = versions.map((each, index) => {
    const label = ["version " + each.version, ...each.labels.map((name) => `(${name})`), percent(each.share)].join(" ");
    return { key: keyOf(each), label: label + ",", colour: STACK[index % STACK.length] };
  });
  const [xs, columns] = store.columns(versions.map((each) => (frame) => {
    const part = frame.byKey.get(keyOf(each));
    return part ? part.requests_per_s : 0;
  }));
  charts.versions.update(xs, series, columns);
}
