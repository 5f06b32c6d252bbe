// Dead letters: what was given up, why, and what to do with it.

import { get, post } from "./api.js";
import { byId, clock, count, lines, make, plural, visible, write } from "./dom.js";

const READ = 200; // at first and at a time
const LINES = 10;
const ALIKE = 6; // make one line
const MOST = 2 << 20;

/** The table. `sure(text, verb)` asks before something is lost, `tell(text)` says what was done, or why not. */
export class Letters {
  constructor(sure, tell) {
    Object.assign(this, { sure, tell, outbox: null, lines: LINES, next: null, total: 0, reading: null });
    this.body = byId("letters").tBodies[0];
    this.rows = new Map();
    this.groups = new Map();
    this.more = byId("letters-more");
    this.webhook = byId("letters-webhook");
    this.bar = byId("letters-filter");
    const onchange = () => this.refresh();
    for (const [name, placeholder] of Object.entries({ client: "", status: "5xx", since: "2h", until: "1h" })) {
      this.bar.lastElementChild.before(make("label", {}, name, make("input", { id: `letters-${name}`, name, size: 8, placeholder, onchange })));
    }
    this.all = { replay: byId("letters-replay"), purge: byId("letters-purge") };
    this.more.onclick = () => {
      this.lines += 5 * LINES;
      if (!this.arrange() && this.next !== null) this.refresh(false);
    };
    this.webhook.onchange = onchange;
    this.bar.reason.oninput = () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(onchange, 250);
    };
    this.bar.onsubmit = (event) => onchange(event.preventDefault());
    for (const verb of ["replay", "purge"]) this.all[verb].onclick = () => this.many(verb);
  }

  offer({ webhooks, outbox }) {
    this.outbox = outbox;
    const names = webhooks.map((webhook) => webhook.name);
    const options = [...this.webhook.options].slice(1).map((option) => option.value);
    if (options.join("\n") === names.join("\n")) return;
    const chosen = this.webhook.value;
    this.webhook.replaceChildren(make("option", { value: "" }, "all"), ...names.map((name) => make("option", { value: name }, visible(name, 60))));
    this.webhook.value = names.includes(chosen) ? chosen : "";
  }

  /** Read the first of them again, or some more; one reading at a time, and the last one asked for wins. */
  async refresh(anew = true) {
    const mine = (this.reading = Symbol("reading"));
    const part = anew ? { limit: Math.max(READ, Math.min(this.rows.size, 1000)) } : { limit: READ, after: this.next };
    try {
      const found = await get(`/api/dead-letters?${new URLSearchParams({ ...this.filter(), ...part })}`);
      if (this.reading === mine) this.show(found, anew);
    } catch (error) {
      if (this.reading === mine) this.tell(error.message);
    }
  }

  /** Show one on top, opened, wherever it stands in the list. */
  async reveal(id) {
    try {
      const letter = await get(`/api/dead-letters/${encodeURIComponent(id)}`);
      this.pinned = this.rows.get(letter.id) ?? new Row(letter, this);
      this.pinned.fill(letter);
      this.pinned.expand(true);
      this.arrange();
      this.pinned.line.scrollIntoView({ block: "center" });
      this.pinned.open.focus();
    } catch (error) {
      this.tell(error.message);
    }
  }

  /** Show those that were given up within five minutes of a time, in seconds since 1970. */
  around(time) {
    const at = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 19) + "Z";
    this.bar.since.value = at(time - 300);
    this.bar.until.value = at(time + 300);
    this.refresh();
  }

  filter() {
    return Object.fromEntries([...new FormData(this.bar)].map(([name, text]) => [name, text.trim()]).filter(([, text]) => text));
  }

  show({ letters, total, next }, anew) {
    if (anew) {
      const here = new Set(letters.map((letter) => letter.id));
      for (const id of this.rows.keys()) if (!here.has(id)) this.rows.delete(id);
      const id = this.pinned?.letter.id;
      if (!here.has(id) && (next === null || id <= next)) this.pinned = null;
    }
    for (const letter of letters) if (!this.rows.has(letter.id)) this.rows.set(letter.id, this.pinned?.letter.id === letter.id ? this.pinned : new Row(letter, this));
    this.next = next;
    this.total = total;
    this.arrange();
    const filtered = Object.keys(this.filter()).length > 0;
    const what = total ? `${filtered ? "these" : "all"} ${count(total)}` : "all";
    for (const [verb, button] of Object.entries(this.all)) {
      button.disabled = total === 0;
      write(button, `${verb === "replay" ? "Replay" : "Purge"} ${what}${verb === "purge" ? " …" : ""}`);
    }
    write(byId("letters-count"), this.told(total, filtered));
  }

  /** Put the rows in place, those that are alike below one line; returns whether there were enough of them. */
  arrange() {
    const pinned = this.pinned;
    byId("letters").hidden = !this.rows.size && !pinned;
    const others = [...this.rows.values()].filter((row) => row !== pinned);
    const alike = Map.groupBy(others, ({ letter }) => JSON.stringify([letter.webhook, letter.status, letter.reason]));
    const groups = new Map();
    const blocks = [...alike].flatMap(([key, rows]) => {
      if (rows.length < ALIKE) return rows.map((row) => [row.letter.id, row.elements]);
      const group = this.groups.get(key) ?? new Group(this);
      groups.set(key, group);
      group.show(rows, this.next !== null);
      return [[rows[0].letter.id, [group.line, ...(group.opened ? rows.flatMap((row) => row.elements) : [])]]];
    });
    this.groups = groups;
    blocks.sort(([one], [other]) => one - other);
    if (pinned) blocks.unshift([0, pinned.elements]);
    // What stays in its place keeps the focus.
    let place = this.body.firstChild;
    for (const element of blocks.slice(0, this.lines).flatMap(([, elements]) => elements)) {
      if (element === place) place = place.nextSibling;
      else this.body.insertBefore(element, place);
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
    this.more.hidden = this.next === null && blocks.length <= this.lines;
    return blocks.length >= this.lines;
  }

  told(total, filtered) {
    if (this.outbox.kind === "memory") return "An outbox in memory does not show them; outbox.kind = sqlite does.";
    if (total === 0) return filtered ? "None like this." : "None. Nothing was given up.";
    const shown = this.rows.size < total ? `The first ${count(this.rows.size)} of ${count(total)}` : plural(total, "delivery", "deliveries");
    return `${shown}, oldest first. A replayed one waits in line for its endpoint again.`;
  }

  async many(verb, ids) {
    const filter = ids ? { ids } : this.filter();
    const number = plural(ids?.length ?? this.total, "dead letter");
    if (verb === "purge" && !(await this.sure(`Purge ${number}? What is purged is lost for good.`, `Purge ${number}`))) return;
    try {
      // By itself, one says why not.
      const path = `/api/dead-letters/${ids?.length === 1 ? `${ids[0]}/` : ""}${verb}`;
      const { count: number } = await post(path, Object.keys(filter).length ? filter : { all: true });
      this.tell(`${plural(number, "dead letter")} ${verb === "replay" ? "replayed" : "purged"}.`);
    } catch (error) {
      this.tell(error.message);
    }
    await this.refresh();
  }
}

/** A line that opens, with its cells and buttons; `act(verb)` is called with "replay" or "purge". */
class Line {
  constructor(attributes, toggle, act) {
    const cell = (name = "") => make("td", { class: name });
    const button = (verb, name, text) => make("button", { class: name, onclick: () => act(verb) }, text);
    this.opened = false;
    this.open = make("button", { class: "open", "aria-expanded": "false", onclick: () => toggle() });
    this.buttons = [button("replay", "", "Replay"), button("purge", "danger", "Purge")];
    this.cells = [cell(), cell(), cell("client"), cell("why")];
    this.cells[0].append(this.open);
    this.line = make("tr", attributes, ...this.cells, make("td", { class: "actions" }, ...this.buttons));
  }

  fillIn(letter, when, client, note, what) {
    write(this.open, when);
    write(this.cells[1], visible(letter.webhook, 60));
    write(this.cells[2], client);
    write(this.cells[3], `${visible(letter.reason)} (${note})`);
    for (const [index, verb] of ["Replay", "Purge"].entries()) this.buttons[index].ariaLabel = `${verb} ${what}`;
  }

  expand(opened) {
    this.opened = opened;
    this.open.ariaExpanded = opened;
    if (this.detail) this.detail.hidden = !opened;
  }
}

/** Those that are alike, as one line. */
class Group extends Line {
  constructor(letters) {
    const toggle = () => {
      this.expand(!this.opened);
      letters.arrange();
    };
    super({ "data-group": "" }, toggle, (verb) => letters.many(verb, this.ids));
  }

  show(rows, more) {
    const [first, last] = [rows[0].letter, rows.at(-1).letter];
    const now = Date.now() / 1000;
    const clients = new Set(rows.map((row) => row.letter.client)).size;
    this.ids = rows.map((row) => row.letter.id);
    const [from, to] = [clock(first.died, now), clock(last.died, now)];
    const when = `${count(rows.length)}${more ? " or more" : ""} × ${from}${from === to ? "" : ` – ${to}`}`;
    this.fillIn(first, when, plural(clients, "client"), "all alike", `these ${rows.length} dead letters`);
  }
}

class Row extends Line {
  constructor(letter, letters) {
    const id = `letter-${letter.id}`;
    super({ "data-letter": letter.id }, () => this.toggle(letters), (verb) => letters.many(verb, [letter.id]));
    this.letter = letter;
    this.open.setAttribute("aria-controls", id);
    this.fillIn(letter, clock(letter.died, Date.now() / 1000), visible(letter.client, 120), plural(letter.attempts, "attempt"), `dead letter ${letter.id}`);
    this.cell = make("td", { colspan: "5" });
    this.detail = make("tr", { class: "detail", id, hidden: true }, this.cell);
    this.elements = [this.line, this.detail];
  }

  async toggle(letters) {
    try {
      if (!this.opened && !this.cell.hasChildNodes()) this.fill(await get(`/api/dead-letters/${this.letter.id}`));
      this.expand(!this.opened);
    } catch (error) {
      letters.tell(error.message);
    }
  }

  fill({ url, request, answer }) {
    const headers = request.headers.map(([name, value]) => `${name}: ${value}`).join("\n");
    const said = answer.status ? `${answer.status}\n\n${answer.body || "(empty)"}` : "None came.";
    this.cell.replaceChildren(
      make("a", { href: `#letter-${this.letter.id}` }, "Link to this dead letter"),
      make("h3", {}, "Request"),
      make("pre", { class: "request", tabindex: "0" }, lines(`${request.method} ${url}\n${headers}\n\n${request.body}${request.truncated ? " … (cut)" : ""}`, MOST)),
      make("h3", {}, "Answer"),
      make("pre", { class: "answer", tabindex: "0" }, lines(said, MOST)),
    );
  }
}
