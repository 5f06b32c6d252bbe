// Each webhook a card: its state, its numbers, its last 15 minutes.

import { get } from "./api.js";
import { byId, bytes, clock, count, lines, make, plural, rate, said, span, visible, write } from "./dom.js";

const WIDTH = 180;
const FLOW = 48;
const GAP = 4;
const HEIGHT = 68;
const LEAST = 6; // a single failure has to be seen beside a thousand deliveries
const WORDS = { up: "up", down: "failing", paused: "paused", untried: "not tried yet" };

/** The cards of all webhooks. `press(webhook, verb)` is called with a button's verb and returns a promise; `pin(time)` with a time. */
export class Webhooks {
  constructor(press, pin) {
    this.box = byId("webhooks");
    Object.assign(this, { press, cards: null, pin: (time) => pin(this.point(time)) });
  }

  /** Point at a time, in seconds since 1970, in all drawings. */
  point(time) {
    this.time = time;
    for (const { chart } of this.cards.values()) chart.pin(time);
    return time;
  }

  show(status) {
    const names = status.webhooks.map((webhook) => webhook.name);
    if (this.cards === null || [...this.cards.keys()].join("\n") !== names.join("\n")) {
      this.cards = new Map(names.map((name, index) => [name, new Card(name, index, this)]));
      this.point(this.time);
      const nothing = make("p", { class: "empty" }, `No webhook is configured.${status.sinks.length ? " Events go to the sinks below." : ""}`);
      this.box.replaceChildren(...(names.length ? [...this.cards.values()].map((card) => card.element) : [nothing]));
    }
    for (const webhook of status.webhooks) this.cards.get(webhook.name).show(webhook, status.now);
  }
}

class Card {
  constructor(name, index, { press, pin }) {
    const card = byId("card").content.firstElementChild.cloneNode(true);
    const find = (selector) => card.querySelector(selector);
    const shown = visible(name, 60);
    const title = find("h3");
    card.id = `webhook:${name}`;
    title.id = `webhook-${index}`;
    card.setAttribute("aria-labelledby", title.id);
    find("a").href = `#${encodeURI(card.id)}`;
    write(find("bdi"), shown);
    for (const button of card.querySelectorAll("button")) {
      button.ariaLabel = `${button.textContent}: ${shown}`;
      button.onclick = () => this.pressed(press, button);
    }
    Object.assign(this, { name, find, element: card, button: find("button"), attempts: find(".attempts pre"), attemptsBox: find(".attempts") });
    this.attemptsBox.ontoggle = () => this.showAttempts();
    this.numbers = new Numbers(find(".numbers"), ["waiting", "delivered", "failed attempts", "dead"]);
    this.chart = new Chart(find(".chart"), pin);
  }

  /** Read the last attempts, while they are to be seen. */
  async showAttempts() {
    if (!this.attemptsBox.open) return;
    try {
      const { attempts } = await get(`/api/webhooks/${encodeURIComponent(this.name)}/attempts`);
      write(this.attempts, attempts.map((one) => outcome(one, this.at)).join("\n") || "None since the start.");
    } catch (error) {
      write(this.attempts, error.message);
    }
  }

  async pressed(press, button) {
    button.disabled = true;
    try {
      await press(this.name, button.dataset.verb);
    } finally {
      button.disabled = false;
      this.showAttempts();
    }
  }

  show(webhook, now) {
    this.at = now;
    const tried = Object.values(webhook.attempts).reduce((sum, number) => sum + number, 0);
    const state = webhook.state === "up" && tried === 0 ? "untried" : webhook.state;
    this.element.dataset.state = state;
    write(this.find(".state"), WORDS[state]);
    const verb = webhook.state === "paused" ? "Resume" : "Pause";
    this.button.dataset.verb = verb.toLowerCase();
    write(this.button, verb);
    this.button.ariaLabel = `${verb} ${visible(this.name, 60)}`;
    // A second before its time it makes no difference.
    this.find("[data-verb=try]").hidden = state === "paused" || !(webhook.retrying || webhook.next_attempt > now + 1);
    write(this.find(".url"), visible(webhook.url));
    write(this.find(".said"), sentence(webhook, now));
    const { refused, failed } = webhook.attempts;
    this.numbers.show("waiting", count(webhook.pending), webhook.pending > 0 && webhook.state === "down");
    this.numbers.show("delivered", count(webhook.delivered));
    this.numbers.show("failed attempts", count(refused + failed), webhook.state === "down");
    this.numbers.show("dead", count(webhook.letters), webhook.letters > 0);
    const rest = [
      `${count(webhook.accepted)} accepted`,
      plural(tried, "attempt"),
      `up to ${count(webhook.in_flight_limit)} at once`,
      webhook.oldest_seconds >= 1 ? `oldest waits ${span(webhook.oldest_seconds)}` : "",
      webhook.bytes ? `room used ${bytes(webhook.bytes)}` : "",
      webhook.dead ? `${count(webhook.dead)} given up since the start` : "",
      webhook.dropped ? `${count(webhook.dropped)} dropped` : "",
      webhook.late ? `${count(webhook.late)} late` : "",
    ];
    write(this.find(".rest"), rest.filter(Boolean).join(" · "));
    this.chart.show(webhook.history);
    if (tried !== this.tried) this.showAttempts();
    this.tried = tried;
    const answer = webhook.last_answer;
    this.find(".answer").hidden = !answer;
    if (answer) write(this.find(".answer pre"), `${clock(answer.at, now)}  ${answer.status}\n${lines(answer.body, 4096) || "(empty)"}`);
  }
}

function sentence(webhook, now) {
  const error = webhook.last_error;
  const last = error ? `Last error ${clock(error.at, now)}: ${visible(error.reason)}.${said(webhook)}` : "";
  const retries = webhook.retrying ? `${plural(webhook.retrying, "retry waits for its time", "retries wait for their time")}. ` : "";
  const until = webhook.paused_until === null ? "" : ` until ${clock(webhook.paused_until, now)}`;
  if (webhook.state === "paused") return `Paused by hand${until}. Everything is accepted, nothing is sent.`;
  if (webhook.state === "up") return retries + (last || "No error since the start.");
  const since = webhook.down_since === null ? "Failing." : `Failing since ${clock(webhook.down_since, now)} (${span(now - webhook.down_since)}).`;
  const next =
    webhook.next_attempt === null || webhook.next_attempt <= now ? "Trying now." : `Next try in ${span(webhook.next_attempt - now)}.`;
  return `${since} ${next} ${last}`;
}

/** An attempt in a line. */
export function outcome({ at, status, seconds, client, together, said }, now) {
  const whose = visible(client, 60) + (together > 1 ? ` and ${count(together - 1)} more` : "");
  return `${clock(at, now)}  ${status || "no answer"}  ${count(Math.round(seconds * 1000))} ms  ${whose}  ${visible(said.replace(/\s+/g, " ").trim(), 300)}`;
}

/** Named numbers in a list. */
export class Numbers {
  constructor(element, names) {
    this.element = element;
    this.values = new Map(names.map((name) => [name, make("dd", {}, "–")]));
    element.replaceChildren(...names.map((name) => make("div", {}, make("dt", {}, name), this.values.get(name))));
  }

  show(name, text, marked = false) {
    const value = this.values.get(name);
    write(value, text);
    value.classList.toggle("marked", marked);
  }
}

const shape = (part, path) => part.setAttribute("d", path);

/** The next of 1, 2, 5, 10, 20 … from a number on. */
function round(number) {
  const unit = 10 ** Math.floor(Math.log10(number));
  return [1, 2, 5, 10].find((factor) => factor * unit >= number) * unit;
}

/** How high a drawing of these reaches: as high as they do, unless a burst would flatten all the rest. */
function reach(values) {
  const sorted = values.filter((value) => value > 0).sort((one, other) => one - other);
  const most = sorted.at(-1) ?? 0;
  const usual = sorted[Math.floor(sorted.length * 0.75)] ?? 0;
  return most > 4 * usual ? 2 * usual : most;
}

/** The last 15 minutes. */
class Chart {
  constructor(chart, pin) {
    const find = (selector) => chart.querySelector(selector);
    this.parts = Object.fromEntries(["delivered", "failed", "accepted", "waiting"].map((name) => [name, find(`path.${name}`)]));
    Object.assign(this, { drawing: find("svg"), cut: find(".cut"), cursor: find(".cursor"), readout: find(".readout"), at: null });
    this.scale = chart.querySelectorAll(".plot span");
    this.times = chart.querySelectorAll(".times span");
    this.drawing.onpointermove = ({ clientX }) => {
      const { left, width } = this.drawing.getBoundingClientRect();
      this.point(Math.floor(((clientX - left) / width) * WIDTH));
    };
    this.drawing.onclick = (event) => {
      this.drawing.onpointermove(event);
      pin(this.time(this.at));
    };
    this.drawing.onpointerleave = this.drawing.onblur = () => this.point(null);
    this.drawing.onfocus = () => this.point(this.at ?? WIDTH - 1);
    this.drawing.onkeydown = (event) => {
      const at = this.at ?? WIDTH;
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 12, PageDown: at + 12, Home: 0, End: WIDTH - 1, Escape: null }[event.key];
      if (event.key === "Enter") pin(this.time(at));
      if (to === undefined) return;
      event.preventDefault();
      this.point(to);
    };
  }

  time(at) {
    return this.history.end - (WIDTH - at) * this.history.step;
  }

  /** Point at a time for as long as nothing else is pointed at. */
  pin(time) {
    this.pinned = time;
    if (this.history) this.read();
  }

  point(at) {
    this.at = at === null ? null : Math.min(WIDTH - 1, Math.max(0, at));
    if (this.history) this.read();
  }

  show(history) {
    // The newest step is at the right end, however short the past.
    const pad = (values) => [...Array(Math.max(0, WIDTH - values.length)).fill(0), ...values.slice(-WIDTH)];
    const series = Object.fromEntries(Object.keys(this.parts).map((name) => [name, pad(history[name])]));
    const { step, end } = history;
    this.history = { ...series, step, end };
    const flow = round(Math.max(1, ...[series.accepted, series.delivered, series.failed].map(reach)) / step) * step;
    const waiting = round(Math.max(10, reach(series.waiting)));
    const y = (value) => (FLOW - Math.min(1, value / flow) * (FLOW - 2)).toFixed(2);
    const deep = (value) => (HEIGHT - Math.min(1, value / waiting) * (HEIGHT - FLOW - GAP)).toFixed(2);
    const stairs = (values, height) => values.map((value, x) => `L${x} ${height(value)}H${x + 1}`).join("");
    shape(this.parts.delivered, `M0 ${FLOW}${stairs(series.delivered, y)}V${FLOW}Z`);
    shape(this.parts.accepted, `M0 ${y(series.accepted[0])}${stairs(series.accepted, y)}`);
    const failed = series.failed.map((value, x) => (value ? `M${x} ${FLOW}V${Math.min(y(value), FLOW - LEAST)}H${x + 1}V${FLOW}Z` : ""));
    shape(this.parts.failed, failed.join(""));
    shape(this.parts.waiting, `M0 ${HEIGHT}${stairs(series.waiting, deep)}V${HEIGHT}Z`);
    // What is higher than the drawing has a mark on its top.
    const marks = (values, most, y) => values.map((value, x) => (value > most ? `M${x} ${y}h1v2h-1Z` : "")).join("");
    const flows = [series.accepted, series.delivered, series.failed].map((values) => marks(values, flow, 0));
    shape(this.cut, flows.join("") + marks(series.waiting, waiting, FLOW + 1));
    [`${rate(flow / step)}/s`, `${rate(flow / step / 2)}/s`, `${count(waiting)} waiting`].forEach((text, index) => write(this.scale[index], text));
    this.times.forEach((text, third) => write(text, clock(this.time(third * 60)).slice(0, -3)));
    this.read();
  }

  read() {
    const { accepted, delivered, failed, waiting, step, end } = this.history;
    const pinned = Math.floor(WIDTH - (end - this.pinned) / step + 1e-3);
    const at = this.at ?? (pinned >= 0 && pinned < WIDTH ? pinned : null);
    const whole = `15 min: at most ${rate(Math.max(...delivered) / step)}/s delivered, ${count(Math.max(...waiting))} waiting`;
    const text =
      at === null
        ? whole
        : `${clock(this.time(at))}: ${rate(accepted[at] / step)}/s accepted, ${rate(delivered[at] / step)}/s delivered, ` +
          `${count(failed[at])} failed, ${count(waiting[at])} waiting`;
    write(this.readout, text);
    shape(this.cursor, at === null ? "" : `M${at + 0.5} 0V${HEIGHT}`);
    this.drawing.ariaLabel = `The last ${whole}, ${count(failed.reduce((sum, value) => sum + value, 0))} failed`;
    this.drawing.ariaValueNow = at ?? WIDTH - 1;
    this.drawing.ariaValueText = text;
  }
}
