// The newest events, as they pass.

import { byId, bytes, clock, lines, make, visible } from "./dom.js";

const KEPT = 100;

/** The list. `ask(payload)` is called when payloads are wanted, or no longer. */
export class Events {
  constructor(ask) {
    this.list = byId("events");
    this.held = false;
    this.payload = false;
    this.hold = byId("events-hold");
    this.button = byId("events-payload");
    this.hold.onclick = () => {
      this.held = !this.held;
      this.hold.ariaPressed = this.held;
    };
    this.button.onclick = () => {
      this.payload = !this.payload;
      this.button.ariaPressed = this.payload;
      ask(this.payload);
    };
  }

  show(events) {
    if (this.held) return;
    this.list.prepend(...events.slice(-KEPT).reverse().map(row));
    while (this.list.childElementCount > KEPT) this.list.lastElementChild.remove();
  }
}

function row(event) {
  const topics = event.topics.map((topic) => visible(topic)).join(", ");
  const size = event.size === null || event.size === undefined ? "" : bytes(event.size);
  const item = make(
    "li",
    {},
    make("time", {}, clock(event.at)),
    make("span", { class: "hook" }, event.hook),
    make("bdi", { class: "client" }, visible(event.client_id) || "–"),
    make("bdi", { class: "topic" }, topics),
    make("span", { class: "size" }, size),
  );
  if (event.payload) item.append(make("pre", {}, payload(event.payload)));
  return item;
}

function payload({ text, base64, truncated }) {
  const more = truncated ? " … (cut)" : "";
  return text === undefined ? `base64: ${base64}${more}` : (lines(text, 4096) || "(empty)") + more;
}
