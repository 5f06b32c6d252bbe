// The status page: one stream of status and events from mqhooks, shown as it comes.

import { Refused, follow, get, post, token } from "./api.js";
import { byId, clock, count, fit, make, plural, rate, span, visible, write } from "./dom.js";
import { Events } from "./events.js";
import { Letters } from "./letters.js";
import { Numbers, Webhooks, outcome } from "./webhooks.js";

/** Seconds without news until what is shown is stale, and until the connection is made anew. */
const STALE = 4;
const SILENT = 10;
const LONGEST_WAIT = 10;

let status = null;
let heardAt = performance.now();
let deadSeen = null;
let refusal = null;
let stream = null;

const zone = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" });
const offset = zone.formatToParts().find((part) => part.type === "timeZoneName").value;

const webhooks = new Webhooks(press, (time) => history.replaceState(null, "", `#time-${new Date(time * 1000).toISOString()}`));
const events = new Events(() => stream?.abort());
const letters = new Letters(sure, tell);
const sidecar = new Numbers(byId("sidecar"), ["connections", "events/s", "events", "left out"]);

let toastTimer;

function tell(text) {
  const toast = byId("toast");
  write(toast, text);
  toast.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => toast.classList.remove("shown"), 6000);
}

async function press(name, verb) {
  const shown = visible(name, 60);
  const until = verb === "until" && (await sure(`Pause ${shown} until`, "Pause", true));
  if (until === "") return;
  const path = `/api/webhooks/${encodeURIComponent(name)}/${until ? "pause" : verb}`;
  const done = await attempt(() => post(path, until ? { until: Date.parse(until) / 1000 } : undefined));
  if (done && verb === "try") tell(done.trying ? `${shown} is being tried.` : "Nothing waited for its time.");
  if (done && verb === "test") tell(`Test of ${shown}: ${outcome(done.attempt)}`);
}

async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    tell(error.message);
    return null;
  }
}

/** Ask before something is done; resolves to true, or the time that is asked for, or "". */
function sure(text, verb, timed = false) {
  const dialog = byId("confirm");
  const [yes, time] = [byId("confirm-yes"), byId("confirm-time")];
  write(byId("confirm-text"), text);
  write(yes, verb);
  yes.classList.toggle("danger", !timed);
  time.hidden = time.disabled = !timed;
  const soon = new Date(Date.now() + 3600000);
  time.value = new Date(soon - soon.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue !== "yes" ? "" : timed ? time.value : true);
  });
}

function login(wrong) {
  const dialog = byId("login");
  write(byId("login-error"), wrong ? "That is not the token." : "");
  dialog.showModal();
  return new Promise((resolve) => (dialog.onclose = resolve));
}

byId("login-form").onsubmit = () => {
  token.set(byId("token").value);
  byId("token").value = "";
};

function showStatus(news) {
  const first = status === null;
  status = news;
  write(byId("version"), `${status.version} on ${visible(status.host, 80)}`);
  webhooks.show(status);
  letters.offer(status);
  showCluster(status);
  showSinks();
  showSidecar();
  showVerdict();
  const seen = status.webhooks.map((webhook) => webhook.dead).join() + status.outbox.dead;
  if (seen !== deadSeen) {
    deadSeen = seen;
    letters.refresh();
  }
  if (first) go();
}

/** Show what the address names: a webhook, a dead letter, a time, or a part of the page. */
function go() {
  let place;
  try {
    place = decodeURIComponent(location.hash.slice(1));
  } catch {
    return;
  }
  const [, kind, what] = /^(letter|time)-(.+)$/.exec(place) ?? [];
  const time = kind === "time" ? Date.parse(what) / 1000 : NaN;
  if (kind === "letter") letters.reveal(what);
  if (!Number.isNaN(time)) {
    webhooks.point(time);
    letters.around(time);
  }
  byId(place)?.scrollIntoView();
  byId(place)?.focus();
}

function showVerdict() {
  const { level, summary, problems } = status.verdict;
  const headline = visible(status.verdict.headline);
  byId("verdict").dataset.level = level;
  write(byId("headline"), headline);
  write(byId("summary"), summary);
  showTitle(level === "good" ? "" : `(!) ${headline} – `);
  const list = byId("problems");
  list.hidden = false;
  const one = () => make("li", {}, make("strong"), " ", make("span"), " ", make("a", {}, "Look"));
  fit(list, problems, one, (item, problem) => {
    const [title, text, link] = item.children;
    item.dataset.level = problem.level;
    write(title, visible(problem.title));
    write(text, visible(problem.text, 2000));
    link.hidden = !problem.link;
    link.href = `#${encodeURI(problem.link)}`;
    link.ariaLabel = `Look at: ${title.textContent}`;
  });
}

function showTitle(problem) {
  document.title = `${problem}mqhooks${status ? ` on ${visible(status.host, 80)} · ${status.version} · ${offset}` : ""}`;
}

function showSinks() {
  byId("sinks-section").hidden = status.sinks.length === 0;
  const said = ([key, value]) => `${visible(key, 60)}: ${typeof value === "number" ? count(value) : visible(String(value ?? "–"))}`;
  const rows = status.sinks.map(({ name, class: kind, running, shown }) => {
    const all = Object.entries(shown).map(said).join(" · ");
    return [visible(name), running ? "runs" : "does not run", all || `${kind} says nothing more`];
  });
  table("sinks", rows);
}

function table(id, rows) {
  const one = () => make("tr", {}, make("th", { scope: "row" }), make("td"), make("td"));
  fit(byId(id), rows, one, (row, texts) => texts.forEach((text, cell) => write(row.cells[cell], text)));
}

function showCluster({ cluster: all }) {
  byId("cluster-section").hidden = !all;
  if (!all) return;
  const waits = ({ pending, oldest_seconds: oldest }) => `${count(pending)} waiting${oldest >= 1 ? `, ${span(oldest)}` : ""}`;
  const over = all.webhooks.map((one) => `${visible(one.name, 60)}: ${waits(one)}`).join(" · ");
  write(byId("cluster"), `Over all bridges: ${over}. This one is connected to ${all.server ?? "no server"}.`);
  const rows = all.members.map(({ name, partitions }) => {
    const owned = all.webhooks.flatMap((one) => one.partitions.filter(({ owner }) => owner === name).map((part) => `${visible(one.name, 60)} ${part.partition}: ${waits(part)}`));
    return [visible(name) + (name === all.name ? " (this one)" : ""), plural(partitions, "partition"), owned.join(" · ")];
  });
  table("members", rows);
}

function showSidecar() {
  const { hooks, rates, sources, sidecar: { unknown, empty } } = status;
  const sum = (name) => sources.reduce((all, one) => all + one[name], 0);
  const lost = sum("malformed") + sum("refused");
  sidecar.show("connections", count(sum("connections")), status.verdict.problems.some(({ link }) => link === "sidecar-title"));
  sidecar.show("events/s", rate(status.rate));
  sidecar.show("events", count(sum("events")));
  sidecar.show("left out", count(lost + unknown + empty), lost > 0);
  fit(byId("sources"), sources, () => make("li"), (line, one) => {
    const numbers = ["connections", "events", "malformed", "refused"].map((name) => `${name} ${count(one[name])}`);
    write(line, `${one.via} on ${visible(one.listening.join(", "))}: ${numbers.join(", ")}`);
  });
  const body = byId("hooks").tBodies[0];
  // Those that never came would push down those that did.
  const active = Object.keys(hooks).filter((hook) => hooks[hook] > 0);
  const most = Math.max(1e-9, ...active.map((hook) => rates[hook]));
  const one = () =>
    make("tr", {}, make("th", { scope: "row" }), make("td", { class: "number" }), make("td", { class: "share" }, make("span", { class: "fill" })), make("td", { class: "number" }));
  fit(body, active, one, (row, hook) => {
    const [name, now, share, all] = row.cells;
    row.dataset.hook = hook;
    write(name, hook);
    write(now, rate(rates[hook]));
    share.firstChild.style.width = `${((rates[hook] / most) * 100).toFixed(1)}%`;
    const brought = sources.map((one) => `${one.via} ${count(one.hooks[hook])}`).join(", ");
    write(all, count(hooks[hook]) + (sources.length > 1 ? ` (${brought})` : ""));
  });
  byId("hooks").hidden = active.length === 0;
  const quiet = Object.keys(hooks).length - active.length;
  write(byId("quiet"), quiet === 0 ? "" : active.length ? `${quiet} other hooks have not called.` : "No hook has called yet.");
}

async function showConfiguration() {
  const settings = await attempt(() => get("/api/config"));
  if (settings === null) return;
  const rows = [...flat(settings, "")].map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, visible(key)), make("td", {}, visible(value, 1000))));
  byId("settings").replaceChildren(...rows);
}

function* flat(value, path) {
  if (value === null || typeof value !== "object") yield [path, value === null ? "–" : String(value)];
  else if (Array.isArray(value) && value.every((item) => item === null || typeof item !== "object")) yield [path, value.join(", ") || "–"];
  else if (Array.isArray(value)) for (const [index, item] of value.entries()) yield* flat(item, `${path}[${index}]`);
  else for (const [key, item] of Object.entries(value)) yield* flat(item, path ? `${path}.${key}` : key);
}

function showLive() {
  const age = (performance.now() - heardAt) / 1000;
  const live = byId("live");
  // Whoever types the token is not waiting for news.
  const state = byId("login").open ? "waiting" : age > STALE ? "stale" : status === null ? "waiting" : "live";
  live.dataset.state = state;
  document.body.dataset.stale = state === "stale";
  const up = status === null ? "connecting …" : `live, up for ${span(status.uptime)}`;
  const since = status === null ? "no news yet" : `no news since ${clock(status.now, Date.now() / 1000)}, ${span(age)} ago`;
  write(byId("live-text"), state === "stale" ? `${since}; reconnecting` : up);
  if (state === "stale") {
    const headline = refusal === null ? "mqhooks does not answer" : "mqhooks refuses this page";
    byId("verdict").dataset.level = "unknown";
    byId("problems").hidden = true;
    write(byId("headline"), headline);
    const old = status === null ? "Nothing is known yet." : "What is shown is old.";
    write(byId("summary"), `${old} ${refusal ?? "Is the process running?"} This page resumes on its own when it is back.`);
    showTitle(`(?) ${headline} – `);
  }
  if (age > SILENT) stream?.abort();
}

function heard(name, data) {
  heardAt = performance.now();
  refusal = null;
  if (name === "status") {
    showStatus(data);
    showLive();
  } else if (name === "events") events.show(data);
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));

async function run() {
  let wait = 1;
  for (;;) {
    stream = new AbortController();
    const before = heardAt;
    const payload = events.payload;
    try {
      await follow(`/api/stream${payload ? "?payload=1" : ""}`, stream.signal, heard);
    } catch (error) {
      refusal = error instanceof Refused ? `${error.message}.` : null;
      if (error instanceof Refused && error.status === 401) {
        await login(token.get() !== null);
        [heardAt, refusal] = [performance.now(), null];
        continue;
      }
      if (error instanceof Refused) tell(error.message);
    }
    if (payload !== events.payload) continue;
    wait = heardAt > before ? 1 : Math.min(wait * 2, LONGEST_WAIT);
    await pause(wait);
    if (performance.now() - heardAt > SILENT * 1000) heardAt = performance.now() - STALE * 1000 - 1;
  }
}

window.onhashchange = () => status && go();
write(byId("zone"), `· times in ${zone.resolvedOptions().timeZone} (${offset})`);
byId("config").ontoggle = () => byId("config").open && showConfiguration();
setInterval(showLive, 1000);
run();
