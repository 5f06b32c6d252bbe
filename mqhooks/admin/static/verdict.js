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
    // The same may be said of two.
    ...new Map(status.sources.map((one) => source(one, status.sources)).filter(Boolean).map((problem) => [problem.title, problem])).values(),
    ...status.webhooks.map((webhook, index) => judgeWebhook(webhook, `webhook-${index}`, status)),
    ...cluster(status.cluster),
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

function summary({ sources, rate: now, webhooks, outbox }) {
  const pending = webhooks.reduce((sum, webhook) => sum + webhook.pending, 0);
  const connections = plural(sources.reduce((sum, source) => sum + source.connections, 0), "connection");
  const from = sources.every(absent) ? "VerneMQ is not connected." : `VerneMQ is connected (${connections}), ${rate(now)} events/s.`;
  if (!webhooks.length) return from;
  return `${from} ${pending ? `${plural(pending, "delivery waits", "deliveries wait")}, ${bytes(outbox.bytes)}.` : "Nothing is waiting."}`;
}

const bad = (title, text, link) => ({ level: "bad", title, text, link });
const warn = (title, text, link) => ({ level: "warn", title, text, link });

const cluster = (all) =>
  (all?.webhooks ?? []).flatMap(({ name, unowned, replicas }) => [
    unowned && bad(`${visible(name, 60)} is delivered in part`, `${plural(unowned, "partition")} without an owner: the bridges' logs say why.`, "cluster-section"),
    replicas && replicas < all.replicas && warn("A server of NATS is missing", `${replicas} of ${all.replicas} replicas have all of ${visible(name, 60)}.`, "cluster-section"),
  ]);

function outbox({ damaged, failing, kind }) {
  return [
    ...damaged.map((file) => bad("A damaged outbox was set aside", `${visible(file)}. Take over what can be read of it: mqhooks outbox salvage, with its name.`)),
    failing && bad("The outbox cannot be written", `${visible(failing)}. Nothing more is accepted${kind === "sqlite" ? "; give its disk room" : ""}. It goes on by itself.`),
  ];
}

/** Whether nobody is there. VerneMQ's own webhooks close connections that they do not use. */
export const absent = (one, _, all) =>
  one.via === "webhooks" ? !one.connections && !one.events : !all.some(({ via, connections }) => via !== "webhooks" && connections);

function source(one, all) {
  const webhooks = one.via === "webhooks";
  if (absent(one, 0, all)) {
    const [title, before, what, after] = webhooks
      ? ["VerneMQ has posted nothing yet", "", "webhooks show list this address", ""]
      : ["VerneMQ is not connected", "It drops events meanwhile. ", "plugin show list vmq_events_sidecar", " After an absence it comes back within two minutes."];
    return (webhooks ? warn : bad)(title, `${before}Is the broker up, does vmq-admin ${what}?${after}`, "sidecar-title");
  }
  const [title, text] = webhooks ? ["VerneMQ's events are refused", "They are lost"] : ["VerneMQ is held up", "Its connections are not read"];
  return one.paused && bad(title, `${text}, because the outbox has no room. See which webhook does not get rid of its deliveries.`, "webhooks-title");
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
