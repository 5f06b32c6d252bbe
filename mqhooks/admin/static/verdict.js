// What the numbers mean, in words, the worst first.

import { bytes, clock, plural, rate, said, span, visible } from "./dom.js";

/** After how many seconds a delivery that still waits is worth a word, although its endpoint answers. */
const LATE = 60;

/** Of how much of its room in the outbox a webhook is worth a word. */
const FULL = 0.8;

/** Judge what /api/status answers: level is good, warn or bad; a problem's link is the id of what to look at. */
export function judge(status) {
  const { dead, kind } = status.outbox;
  const why = kind === "memory" ? "The log says why." : "See why, then replay or purge them.";
  const problems = [
    ...outbox(status.outbox),
    sidecar(status.sidecar),
    ...status.webhooks.map((webhook, index) => judgeWebhook(webhook, `webhook-${index}`, status)),
    ...status.sinks.map(sink),
    dead && warn(plural(dead, "dead letter"), `Deliveries that were given up. ${why}`, "letters-section"),
  ].filter(Boolean);
  problems.sort((one, other) => one.level.localeCompare(other.level));
  return {
    level: problems[0]?.level ?? "good",
    headline: problems.length ? headline(problems) : "All is well",
    summary: summary(status),
    problems,
  };
}

function headline(problems) {
  const shown = problems.slice(0, 2).map((problem) => problem.title);
  const more = problems.length - shown.length;
  return shown.join(", ") + (more ? `, and ${more} more` : "");
}

function summary({ sidecar, webhooks, outbox }) {
  const pending = webhooks.reduce((sum, webhook) => sum + webhook.pending, 0);
  const from = sidecar.connections
    ? `VerneMQ is connected (${plural(sidecar.connections, "connection")}), ${rate(sidecar.rate)} events/s.`
    : "VerneMQ is not connected.";
  if (!webhooks.length) return from;
  return `${from} ${pending ? `${plural(pending, "delivery waits", "deliveries wait")}, ${bytes(outbox.bytes)}.` : "Nothing is waiting."}`;
}

const bad = (title, text, link) => ({ level: "bad", title, text, link });
const warn = (title, text, link) => ({ level: "warn", title, text, link });

function outbox({ damaged, failing }) {
  return [
    ...damaged.map((file) => bad("A damaged outbox was set aside", `${visible(file)}. Take over what can be read of it: mqhooks outbox salvage, with its name.`)),
    failing && bad("The outbox cannot be written", `${visible(failing)}. Nothing more is accepted; give its disk room, it goes on by itself.`),
  ];
}

function sidecar({ connections, paused }) {
  if (!connections)
    return bad(
      "VerneMQ is not connected",
      "It drops events meanwhile. Is the broker up, does vmq-admin plugin show list vmq_events_sidecar? " +
        "After an absence it comes back within two minutes.",
      "sidecar-title",
    );
  const text = "Its connections are not read, because the outbox has no room. See which webhook does not get rid of its deliveries.";
  return paused && bad("VerneMQ is held up", text, "webhooks-title");
}

function sink({ name, running }) {
  return !running && warn(`${visible(name, 60)} does not run`, "This sink was stopped, or did not start. The log says why.", "sinks-section");
}

function judgeWebhook(webhook, link, { now, outbox }) {
  const name = visible(webhook.name, 60);
  const place = outbox.kind === "memory" ? "in memory, and would be lost if mqhooks ended" : "on disk";
  const used = webhook.bytes / webhook.max_size;
  const waiting =
    (webhook.pending ? ` ${plural(webhook.pending, "delivery waits", "deliveries wait")} ${place}.` : " Nothing waits.") +
    (used > FULL ? ` ${Math.floor(used * 100)} % of its room is used.` : "");
  if (webhook.state === "paused") return warn(`${name} is paused`, `Nothing is sent until somebody resumes it.${waiting}`, link);
  if (webhook.state === "down") {
    const since = webhook.down_since === null ? "" : ` since ${clock(webhook.down_since, now)} (${span(now - webhook.down_since)})`;
    const why = webhook.last_error ? `: ${visible(webhook.last_error.reason)}.${said(webhook)}` : ".";
    return webhook.refusing
      ? bad(
          `${name} refuses everything`,
          `Its endpoint has refused every delivery${since}${why} Check its URL, token and routes.${waiting} None becomes a dead letter meanwhile.`,
          link,
        )
      : bad(`${name} is failing`, `Its endpoint fails${since}${why}${waiting} It is tried again by itself, or by Try now.`, link);
  }
  if (webhook.oldest_seconds > LATE)
    return warn(`${name} is behind`, `Its endpoint answers, but the oldest delivery has waited for ${span(webhook.oldest_seconds)}.${waiting}`, link);
  return used > FULL && warn(`${name} has little room left`, `Its endpoint answers.${waiting}`, link);
}
