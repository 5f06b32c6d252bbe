// Dead letters: what was given up, why, and what to do with it.

import { get, post } from "./api.js";
import { byId, clock, count, make, plural, visible, write } from "./dom.js";

const FIRST = 10;
const PAGE = 50;

/**
 * The table.
 * @param {(text: string, verb: string) => Promise<boolean>} sure asks before something is lost
 * @param {(text: string) => void} tell says what was done, or why not
 */
export class Letters {
  constructor(sure, tell) {
    Object.assign(this, { sure, tell });
    this.outbox = null;
    this.body = byId("letters").tBodies[0];
    this.rows = new Map();
    this.next = null;
    this.total = 0;
    this.reading = null;
    this.more = byId("letters-more");
    this.webhook = byId("letters-webhook");
    this.reason = byId("letters-reason");
    this.all = { replay: byId("letters-replay"), purge: byId("letters-purge") };
    this.more.addEventListener("click", () => this.extend());
    this.webhook.addEventListener("change", () => this.refresh());
    this.reason.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.refresh(), 250);
    });
    byId("letters-filter").addEventListener("submit", (event) => {
      event.preventDefault();
      this.refresh();
    });
    for (const verb of ["replay", "purge"]) this.all[verb].addEventListener("click", () => this.many(verb));
  }

  /** Offer the webhooks to filter by. */
  offer({ webhooks, outbox }) {
    this.outbox = outbox;
    const names = webhooks.map((webhook) => webhook.name);
    const options = [...this.webhook.options].slice(1).map((option) => option.value);
    if (options.join("\n") === names.join("\n")) return;
    const chosen = this.webhook.value;
    this.webhook.replaceChildren(make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, visible(name, 60))));
    this.webhook.value = names.includes(chosen) ? chosen : "";
  }

  /** Read the first of them again; one reading at a time, and the last one asked for wins. */
  async refresh() {
    const mine = (this.reading = Symbol("reading"));
    try {
      const shown = Math.max(FIRST, Math.min(this.rows.size, 1000));
      const found = await get(this.address({ limit: shown }));
      if (this.reading === mine) this.show(found, true);
    } catch (error) {
      if (this.reading === mine) this.tell(error.message);
    }
  }

  async extend() {
    const mine = (this.reading = Symbol("reading"));
    try {
      const found = await get(this.address({ limit: PAGE, after: this.next }));
      if (this.reading === mine) this.show(found, false);
    } catch (error) {
      this.tell(error.message);
    }
  }

  filter() {
    const filter = {};
    if (this.webhook.value) filter.webhook = this.webhook.value;
    if (this.reason.value.trim()) filter.reason = this.reason.value.trim();
    return filter;
  }

  address(more) {
    return `/api/dead-letters?${new URLSearchParams({ ...this.filter(), ...more })}`;
  }

  show({ letters, total, next }, anew) {
    if (anew) {
      const here = new Set(letters.map((letter) => letter.id));
      for (const [id, row] of this.rows) {
        if (here.has(id)) continue;
        row.remove();
        this.rows.delete(id);
      }
    }
    let place = anew ? this.body.firstChild : null;
    for (const letter of letters) {
      if (!this.rows.has(letter.id)) this.rows.set(letter.id, new Row(letter, this));
      const row = this.rows.get(letter.id);
      if (row.line === place) place = row.detail.nextSibling;
      else row.before(this.body, place);
    }
    this.next = next;
    this.total = total;
    this.more.hidden = next === null;
    byId("letters").hidden = this.rows.size === 0;
    const filtered = Object.keys(this.filter()).length > 0;
    const what = filtered ? `these ${count(total)}` : `all ${count(total)}`;
    for (const [verb, button] of Object.entries(this.all)) {
      button.disabled = total === 0;
      write(button, `${verb === "replay" ? "Replay" : "Purge"} ${total ? what : "all"}${verb === "purge" ? " …" : ""}`);
    }
    write(byId("letters-count"), this.told(total, filtered));
  }

  told(total, filtered) {
    if (this.outbox.kind === "memory") return "An outbox in memory does not show them; outbox.kind = sqlite does.";
    if (total === 0) return filtered ? "None like this." : "None. Nothing was given up.";
    const shown = this.rows.size < total ? `The first ${count(this.rows.size)} of ${count(total)}` : plural(total, "delivery", "deliveries");
    return `${shown}, oldest first. A replayed one waits in line for its endpoint again.`;
  }

  async one(verb, letter) {
    const text = `Purge dead letter ${letter.id}? Its request is lost for good.`;
    if (verb === "purge" && !(await this.sure(text, "Purge"))) return;
    await this.done(verb, `/api/dead-letters/${letter.id}/${verb}`);
  }

  async many(verb) {
    const filter = this.filter();
    const number = plural(this.total, "dead letter", "dead letters");
    if (verb === "purge" && !(await this.sure(`Purge ${number}? Their requests are lost for good.`, `Purge ${number}`))) return;
    await this.done(verb, `/api/dead-letters/${verb}`, Object.keys(filter).length ? filter : { all: true });
  }

  async done(verb, path, filter) {
    try {
      const { count: number } = await post(path, filter);
      this.tell(`${plural(number, "dead letter", "dead letters")} ${verb === "replay" ? "replayed" : "purged"}.`);
    } catch (error) {
      this.tell(error.message);
    }
    await this.refresh();
  }
}

class Row {
  constructor(letter, letters) {
    this.letter = letter;
    this.opened = false;
    const id = `letter-${letter.id}`;
    this.open = make(
      "button",
      { type: "button", class: "open", "aria-expanded": "false", "aria-controls": id, onclick: () => this.toggle(letters) },
      make("span", {}, clock(letter.died, Date.now() / 1000)),
    );
    const act = (verb, name, text) =>
      make("button", { type: "button", class: name, "aria-label": `${text} dead letter ${letter.id}`, onclick: () => letters.one(verb, letter) }, text);
    const tries = plural(letter.attempts, "attempt", "attempts");
    this.line = make(
      "tr",
      { "data-letter": letter.id },
      make("td", {}, this.open),
      make("td", {}, make("bdi", {}, visible(letter.webhook, 60))),
      make("td", { class: "client" }, make("bdi", {}, visible(letter.client, 120))),
      make("td", { class: "why" }, `${visible(letter.reason)} `, make("span", { class: "note" }, `(${tries})`)),
      make("td", { class: "actions" }, act("replay", "", "Replay"), act("purge", "danger", "Purge")),
    );
    this.cell = make("td", { colspan: "5" });
    this.detail = make("tr", { class: "detail", id, hidden: true }, this.cell);
  }

  before(body, place) {
    body.insertBefore(this.line, place);
    body.insertBefore(this.detail, place);
  }

  remove() {
    this.line.remove();
    this.detail.remove();
  }

  async toggle(letters) {
    this.opened = !this.opened;
    if (this.opened && !this.cell.hasChildNodes()) {
      try {
        this.fill(await get(`/api/dead-letters/${this.letter.id}`));
      } catch (error) {
        this.opened = false;
        letters.tell(error.message);
      }
    }
    this.open.setAttribute("aria-expanded", this.opened);
    this.detail.hidden = !this.opened;
  }

  fill({ url, request, answer }) {
    const headers = request.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
    const said = answer.status ? `${answer.status}\n\n${answer.body || "(empty)"}` : "None came.";
    this.cell.replaceChildren(
      make("h4", {}, "Request"),
      make("pre", { class: "request" }, lines(`POST ${url}\n${headers}\n\n${request.body}${request.truncated ? " … (cut)" : ""}`)),
      make("h4", {}, "Answer"),
      make("pre", { class: "answer" }, lines(said)),
    );
  }
}

/** Show what a text of several lines would hide. */
const lines = (text) => text.split(/\r?\n/).map((line) => visible(line, 1 << 20)).join("\n");
