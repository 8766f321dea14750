"use strict";
/* What the page knows: the frames of the last five minutes, and what they mean in words. No DOM here. */

const KEPT_S = 300;

/* What the names of reasons mean, for legends and findings. */
const REASONS = {
  full: "full: the batch had max_batch_size rows",
  preferred: "preferred: it had a preferred size",
  idle: "idle: a stream was free and waiting promised nothing",
  hold: "hold: it had waited for more as long as was worth it",
  deadline: "deadline: a request in it could wait no longer",
  retry: "retry: run again alone, after the batch it was in failed",
  latency_objective: "would be late for the objective: add a server or raise the objective",
  max_queue_size: "the queue is full: add a server or raise --max-queue-size",
  max_inflight_bytes: "too many bytes in flight: add memory or raise --max-inflight-bytes",
  refused_deadline: "would miss the caller's own deadline",
  REJECTED: "rejected",
  EXPIRED: "the deadline came while they waited",
  CANCELED: "their callers gave up",
  BACKEND: "the model raised an error: see the log",
  OTHER: "other errors: see the log",
};

/* Requests whose callers gave up are no fault of the server. */
const HARMLESS_FAILURES = new Set(["CANCELED"]);

/* What lowers a GPU's clocks. The power cap is at work whenever a GPU gives all that it may; the others are faults. */
const THROTTLES = { thermal: "heat", hardware: "its hardware" };
const isFault = (reason) => reason !== "power_cap";

/* From here on a GPU's memory is all but used up. */
const FULL_MEMORY = 0.97;

const keyOf = (each) => (each.version ? each.model + "/" + each.version : each.model);

class Store {
  constructor() {
    this.frames = [];
  }

  /* Take a frame; models are found by key from then on. */
  add(frame) {
    frame.byKey = new Map(frame.models.map((each) => [keyOf(each), each]));
    this.frames.push(frame);
    const oldest = frame.at - KEPT_S;
    while (this.frames[0].at < oldest) this.frames.shift();
  }

  replace(frames) {
    this.frames = [];
    frames.forEach((frame) => this.add(frame));
  }

  get latest() {
    return this.frames[this.frames.length - 1] || null;
  }

  /* The frames of the last seconds. */
  recent(seconds) {
    if (!this.latest) return [];
    const since = this.latest.at - seconds + 0.5;
    return this.frames.filter((frame) => frame.at >= since);
  }

  /* A model's parts of some frames, where it was there. */
  parts(key, frames) {
    return frames.map((frame) => frame.byKey.get(key)).filter(Boolean);
  }

  /* The x values in seconds, and for each reader its values; a gap where frames are missing. */
  columns(readers) {
    const xs = [];
    const columns = readers.map(() => []);
    let before = null;
    for (const frame of this.frames) {
      if (before !== null && frame.at - before > frame.interval_s + 2.5) {
        xs.push(before + 1);
        columns.forEach((column) => column.push(null));
      }
      xs.push(frame.at);
      readers.forEach((read, index) => {
        const value = read(frame);
        columns[index].push(value === undefined ? null : value);
      });
      before = frame.at;
    }
    return [xs, columns];
  }
}

/* The mean rate of each reason over some parts: {reason: a second}. */
function meanRates(parts, field) {
  const sums = {};
  for (const part of parts) {
    for (const [reason, rate] of Object.entries(part[field] || {})) sums[reason] = (sums[reason] || 0) + rate;
  }
  for (const reason of Object.keys(sums)) sums[reason] /= parts.length;
  return sums;
}

const meanOf = (parts, field) => parts.reduce((sum, part) => sum + (part[field] || 0), 0) / (parts.length || 1);
const sumOf = (rates) => Object.values(rates).reduce((sum, rate) => sum + rate, 0);
const largestFirst = (rates) => Object.entries(rates).sort((a, b) => b[1] - a[1]);

/* What is wrong, worst first: [{level: "bad" | "warn" | "good", kind, text, hint}]. */
function findingsOf(store) {
  const latest = store.latest;
  if (!latest) return [];
  const found = [];
  for (const [model, reason] of Object.entries(latest.server.not_ready || {})) {
    found.push({ level: "bad", kind: "unready " + model, text: `${model} is not served: ${reason}`, hint: "" });
  }
  if (latest.server.ready === false && !found.length) {
    found.push({ level: "bad", kind: "unready", text: "The server isn't ready.", hint: "It starts, or it drains." });
  }
  const last = store.recent(10);
  latest.models.forEach((each) => found.push(...modelFindings(each, store.parts(keyOf(each), last))));
  found.push(...serverFindings(latest, last));
  const order = { bad: 0, warn: 1, good: 2 };
  found.sort((a, b) => order[a.level] - order[b.level]);
  return found.length ? found : [allWell(latest)];
}

/* Over ten seconds, so that one slow second neither shows nor hides a fault. */
function modelFindings(now, parts) {
  const found = [];
  const name = keyOf(now);
  const add = (level, kind, text, hint) => found.push({ level, kind: kind + " " + name, text: `${name}: ${text}`, hint, key: name });
  const objective = now.objective_ms;
  const timed = parts.filter((part) => part.p99_ms !== null).slice(-5);
  const above = objective ? timed.filter((part) => part.p99_ms > objective) : [];
  if (above.length >= 3 || (above.length && above.length === timed.length)) {
    const p99 = above[above.length - 1].p99_ms;
    add("bad", "slow", `p99 ${ms(p99)} is above its objective of ${shortMs(objective)}`, whereTimeGoes(now));
  }
  const refusals = meanRates(parts, "refusals");
  for (const [reason, rate] of largestFirst(refusals)) {
    const means = REASONS[reason === "deadline" ? "refused_deadline" : reason] || "";
    add("bad", "refuses " + reason, `refusing ${count(rate)}/s: ${reason}`, means);
  }
  for (const [reason, rate] of largestFirst(meanRates(parts, "failures"))) {
    add(HARMLESS_FAILURES.has(reason) ? "warn" : "bad", "fails " + reason, `failing ${count(rate)}/s: ${reason}`, REASONS[reason] || "");
  }
  const late = meanOf(parts, "late_per_s");
  // A p99 within the objective lets one answer of a hundred be later.
  if (!above.length && late > 0.01 * meanOf(parts, "requests_per_s")) {
    add("warn", "late", `${count(late)}/s late: past their deadline or the objective`, "");
  }
  if (now.device && now.device.row_limit) {
    add("warn", "memory", `the GPU has room for ${count(now.device.row_limit)} rows at once: larger batches run in parts`, "It ran out of memory: lower max_batch_size, or serve other models elsewhere.");
  }
  const busy = parts.length > 2 && parts.every((part) => part.busy !== null && part.busy > 0.95);
  if (busy && !sumOf(refusals)) add("warn", "busy", `its ${count(now.streams)} stream${now.streams === 1 ? " is" : "s are"} busy all the time`, "There is no room for more load.");
  return found;
}

/* Where the time of a slow answer goes, by its parts. */
function whereTimeGoes(part) {
  if (part.queue_p99_ms === null || part.run_p50_ms === null) return "";
  const queue = `waiting takes up to ${ms(part.queue_p99_ms)} (p99)`;
  return `${queue}, a run ${ms(part.run_p50_ms)} (p50)`;
}

function serverFindings(latest, last) {
  const found = [];
  const lags = last.map((frame) => frame.server.loop_lag_p99_ms).filter((lag) => lag !== null);
  const late = lags.filter((lag) => lag > 50);
  if (late.length >= 3) {
    const text = `The event loop is late by ${ms(late[late.length - 1])} (p99)`;
    found.push({ level: "warn", kind: "lag", text, hint: "All calls wait for it: the machine or the process has too much to do." });
  }
  for (const gpu of latest.gpus || []) {
    for (const reason of gpu.throttled.filter(isFault)) {
      found.push({ level: "warn", kind: `throttled ${reason} ${gpu.uuid}`, text: `${gpu.device} is slowed by ${THROTTLES[reason] || reason}`, hint: "Look at its cooling and its power supply." });
    }
  }
  const answering = latest.models.some((each) => each.requests_per_s > 0);
  if (answering && latest.models.every((each) => each.p99_ms === null) && lags.length === 0) {
    found.push({ level: "warn", kind: "off", text: "Latencies aren't measured", hint: "The server runs with --monitoring off." });
  }
  return found;
}

function allWell(latest) {
  const models = latest.models.length;
  const rate = `${count(latest.total.requests_per_s)} requests/s`;
  const text = models ? `All is well: ${models} model version${models === 1 ? "" : "s"} ready, ${rate}, none refused, none late, none failed.` : "No model is loaded.";
  return { level: models ? "good" : "warn", kind: "well", text, hint: "" };
}

/* -- numbers for people ------------------------------------------------------------------------ */

const NONE = "–";

function count(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  const digits = value >= 20 ? 0 : value >= 1 ? 1 : 2;
  if (value < 0.01) return "<0.01";
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

function ms(value) {
  if (value === null || value === undefined) return NONE;
  if (value >= 1000) return count(value / 1000) + " s";
  return (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)) + " ms";
}

const shortMs = (value) => (value === null || value === undefined ? NONE : +value.toPrecision(3) + " ms");

function bytes(value) {
  if (value === null || value === undefined) return NONE;
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (value >= size) return count(value / size) + " " + unit;
  }
  return value + " B";
}

const percent = (value) => (value === null || value === undefined ? NONE : Math.round(value * 100) + " %");
