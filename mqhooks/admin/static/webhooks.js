// Each webhook a card: its state, its numbers, its last 15 minutes.

import { byId, bytes, clock, count, draw, make, plural, rate, span, visible, write } from "./dom.js";

const WIDTH = 180;
const FLOW = 48;
const GAP = 4;
const HEIGHT = 68;
const LEAST = 6; // a single failure has to be seen beside a thousand deliveries
const WORDS = { up: "up", down: "failing", paused: "paused" };

/** The cards of all webhooks. `press(webhook, verb)` is called with "pause" or "resume" and returns a promise. */
export class Webhooks {
  constructor(press) {
    this.box = byId("webhooks");
    this.press = press;
    this.cards = new Map();
  }

  show(status) {
    const names = status.webhooks.map((webhook) => webhook.name);
    const same = names.length === this.cards.size && [...this.cards.keys()].every((name, index) => name === names[index]);
    if (!same) {
      this.cards = new Map(names.map((name, index) => [name, new Card(name, index, this.press)]));
      const nothing = make("p", { class: "empty" }, "No webhook is configured.");
      this.box.replaceChildren(...(names.length ? [...this.cards.values()].map((card) => card.element) : [nothing]));
    }
    for (const webhook of status.webhooks) this.cards.get(webhook.name).show(webhook, status.now);
  }
}

class Card {
  constructor(name, index, press) {
    const title = make("h3", { id: `webhook-${index}`, tabindex: "-1" }, make("bdi", {}, visible(name, 60)));
    this.name = name;
    this.state = make("span", { class: "state" });
    this.button = make("button", { type: "button", onclick: () => this.pressed(press) });
    this.url = make("p", { class: "url" });
    this.said = make("p", { class: "said" });
    this.answer = make("pre");
    this.answerBox = make("details", { class: "answer" }, make("summary", {}, "Its last answer"), this.answer);
    this.numbers = new Numbers(make("dl", { class: "numbers" }), ["waiting", "delivered", "failed attempts", "dead"]);
    this.rest = make("p", { class: "note rest" });
    this.chart = new Chart();
    this.element = make(
      "article",
      { class: "card webhook", "aria-labelledby": `webhook-${index}` },
      make("header", {}, title, this.state, this.button),
      this.url,
      this.said,
      this.numbers.element,
      this.chart.element,
      this.rest,
      this.answerBox,
    );
  }

  async pressed(press) {
    this.button.disabled = true;
    try {
      await press(this.name, this.button.dataset.verb);
    } finally {
      this.button.disabled = false;
    }
  }

  show(webhook, now) {
    this.element.dataset.state = webhook.state;
    write(this.state, WORDS[webhook.state]);
    const verb = webhook.state === "paused" ? "resume" : "pause";
    this.button.dataset.verb = verb;
    write(this.button, verb === "pause" ? "Pause" : "Resume");
    this.button.setAttribute("aria-label", `${verb === "pause" ? "Pause" : "Resume"} ${visible(this.name, 60)}`);
    write(this.url, visible(webhook.url));
    write(this.said, sentence(webhook, now));
    const { refused = 0, failed = 0 } = webhook.attempts;
    this.numbers.show("waiting", count(webhook.pending), webhook.pending > 0 && webhook.state === "down");
    this.numbers.show("delivered", count(webhook.delivered));
    this.numbers.show("failed attempts", count(refused + failed), webhook.state === "down");
    this.numbers.show("dead", count(webhook.dead));
    const tried = Object.values(webhook.attempts).reduce((sum, number) => sum + number, 0);
    const rest = [
      `${count(webhook.accepted)} accepted`,
      plural(tried, "attempt", "attempts"),
      webhook.oldest_seconds >= 1 ? `oldest waits ${span(webhook.oldest_seconds)}` : "",
      webhook.bytes ? `room used ${bytes(webhook.bytes)}` : "",
      webhook.dropped ? `${count(webhook.dropped)} dropped` : "",
      webhook.late ? `${count(webhook.late)} late` : "",
    ];
    write(this.rest, rest.filter(Boolean).join(" · "));
    this.chart.show(webhook.history);
    const answer = webhook.last_answer;
    this.answerBox.hidden = !answer;
    if (answer) write(this.answer, `${clock(answer.at, now)}  ${answer.status}\n${visible(answer.body ?? "", 4096) || "(empty)"}`);
  }
}

function sentence(webhook, now) {
  const error = webhook.last_error;
  const last = error ? `${clock(error.at, now)}: ${visible(error.reason)}` : "";
  if (webhook.state === "paused") return "Paused by hand. Everything is accepted, nothing is sent.";
  if (webhook.state === "up") return error ? `Last error ${last}` : "No error since the start.";
  const since = webhook.down_since === null ? "Failing." : `Failing since ${clock(webhook.down_since, now)} (${span(now - webhook.down_since)}).`;
  const next =
    webhook.next_attempt === null || webhook.next_attempt <= now ? "Trying now." : `Next try in ${span(webhook.next_attempt - now)}.`;
  return `${since} ${next} ${last ? `Last error ${last}` : ""}`;
}

/** Named numbers in a list of their own, each with its place from the start. */
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

/** The last 15 minutes: what was accepted (line) and delivered (area), what failed (bars), and below what waited. */
class Chart {
  constructor() {
    this.drawing = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.parts = Object.fromEntries(
      ["delivered", "failed", "accepted", "waiting"].map((name) => [name, draw("path", { class: name })]),
    );
    this.drawing.append(draw("path", { class: "ground", d: `M0 ${FLOW}H${WIDTH}M0 ${HEIGHT}H${WIDTH}` }), ...Object.values(this.parts));
    const key = (name, text) => make("span", { class: `key ${name}` }, text);
    this.readout = make("p", { class: "note readout" });
    this.element = make(
      "figure",
      { class: "chart" },
      this.drawing,
      make(
        "figcaption",
        {},
        make("span", { class: "keys" }, key("accepted", "accepted"), key("delivered", "delivered"), key("failed", "failed"), key("waiting", "waiting")),
        this.readout,
      ),
    );
    this.pointed = null;
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.point(null));
  }

  point(event) {
    const { left, width } = this.drawing.getBoundingClientRect();
    this.pointed = event === null ? null : Math.min(WIDTH - 1, Math.max(0, Math.floor(((event.clientX - left) / width) * WIDTH)));
    if (this.history) this.read();
  }

  show(history) {
    // The newest step is at the right end, however short the past.
    const pad = (values) => [...Array(Math.max(0, WIDTH - values.length)).fill(0), ...values.slice(-WIDTH)];
    const series = Object.fromEntries(Object.keys(this.parts).map((name) => [name, pad(history[name])]));
    this.history = { ...series, step: history.step, end: history.end };
    const flow = Math.max(1, ...series.accepted, ...series.delivered, ...series.failed);
    // What waits for less than one step is a thin line.
    const waiting = Math.max(flow, ...series.waiting);
    const y = (value) => (FLOW - (value / flow) * (FLOW - 2)).toFixed(2);
    const stairs = (values, height) => values.map((value, x) => `L${x} ${height(value)}H${x + 1}`).join("");
    this.parts.delivered.setAttribute("d", `M0 ${FLOW}${stairs(series.delivered, y)}V${FLOW}Z`);
    this.parts.accepted.setAttribute("d", `M0 ${y(series.accepted[0])}${stairs(series.accepted, y)}`);
    this.parts.failed.setAttribute(
      "d",
      series.failed.map((value, x) => (value ? `M${x} ${FLOW}V${Math.min(y(value), FLOW - LEAST)}H${x + 1}V${FLOW}Z` : "")).join(""),
    );
    const depth = HEIGHT - FLOW - GAP;
    this.parts.waiting.setAttribute(
      "d",
      `M0 ${HEIGHT}${stairs(series.waiting, (value) => (HEIGHT - (value / waiting) * depth).toFixed(2))}V${HEIGHT}Z`,
    );
    this.read();
  }

  read() {
    const { accepted, delivered, failed, waiting, step, end } = this.history;
    const whole = `15 min: at most ${rate(Math.max(...delivered) / step)}/s delivered, ${count(Math.max(...waiting))} waiting`;
    const at = this.pointed;
    const text =
      at === null
        ? whole
        : `${clock(end - (WIDTH - at) * step)}: ${rate(accepted[at] / step)}/s accepted, ${rate(delivered[at] / step)}/s delivered, ` +
          `${count(failed[at])} failed, ${count(waiting[at])} waiting`;
    write(this.readout, text);
    this.drawing.setAttribute("aria-label", `The last ${whole}, ${count(failed.reduce((sum, value) => sum + value, 0))} failed`);
  }
}
