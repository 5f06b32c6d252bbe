// What the numbers mean, in words, the worst first.

import { bytes, clock, plural, rate, span, visible } from "./dom.js";

/** After how many seconds a delivery that still waits is worth a word, although its endpoint answers. */
const LATE = 60;

/** Of how much of its room in the outbox a webhook is worth a word. */
const FULL = 0.8;

const WORSE = { bad: 0, warn: 1 };

/**
 * Judge a status.
 * @param {object} status what /api/status answers
 * @returns {{level: string, headline: string, summary: string, problems: {level, title, text, link}[]}}
 *   level is good, warn or bad; link is the id of what to look at
 */
export function judge(status) {
  const problems = [
    ...outbox(status.outbox),
    ...sidecar(status.sidecar),
    ...status.webhooks.flatMap((webhook, index) => judgeWebhook(webhook, `webhook-${index}`, status)),
  ];
  const { dead, kind } = status.outbox;
  if (dead)
    problems.push({
      level: "warn",
      title: plural(dead, "dead letter", "dead letters"),
      text: `Deliveries that were given up. ${kind === "memory" ? "The log says why." : "See why, then replay or purge them."}`,
      link: "letters-section",
    });
  problems.sort((one, other) => WORSE[one.level] - WORSE[other.level]);
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
    ? `VerneMQ is connected (${plural(sidecar.connections, "connection", "connections")}), ${rate(sidecar.rate)} events/s.`
    : "VerneMQ is not connected.";
  if (!webhooks.length) return from;
  return `${from} ${pending ? `${plural(pending, "delivery waits", "deliveries wait")}, ${bytes(outbox.bytes)}.` : "Nothing is waiting."}`;
}

function outbox(outbox) {
  const damaged = outbox.damaged.map((file) => ({
    level: "bad",
    title: "A damaged outbox was set aside",
    text: `${visible(file)}. Take over what can be read of it: mqhooks outbox salvage, with this file's name.`,
    link: null,
  }));
  if (!outbox.failing) return damaged;
  return [
    ...damaged,
    {
      level: "bad",
      title: "The outbox cannot be written",
      text: `${visible(outbox.failing)}. Nothing more is accepted; give its disk room, it goes on by itself.`,
      link: null,
    },
  ];
}

function sidecar(sidecar) {
  if (!sidecar.connections)
    return [
      {
        level: "bad",
        title: "VerneMQ is not connected",
        text:
          "It drops events meanwhile. Is the broker up, does vmq-admin plugin show list vmq_events_sidecar? " +
          "After an absence it comes back within two minutes.",
        link: "sidecar-title",
      },
    ];
  if (sidecar.paused)
    return [
      {
        level: "bad",
        title: "VerneMQ is held up",
        text: "Its connections are not read, because the outbox has no room. See which webhook does not get rid of its deliveries.",
        link: "webhooks-title",
      },
    ];
  return [];
}

function judgeWebhook(webhook, link, { now, outbox }) {
  const name = visible(webhook.name, 60);
  const place = outbox.kind === "memory" ? "in memory, and would be lost if mqhooks ended" : "on disk";
  const used = webhook.bytes / webhook.max_size;
  const waiting =
    (webhook.pending ? ` ${plural(webhook.pending, "delivery waits", "deliveries wait")} ${place}.` : " Nothing waits.") +
    (used > FULL ? ` ${Math.floor(used * 100)} % of its room is used.` : "");
  if (webhook.state === "paused")
    return [{ level: "warn", title: `${name} is paused`, text: `Nothing is sent until somebody resumes it.${waiting}`, link }];
  if (webhook.state === "down") {
    const since = webhook.down_since === null ? "" : ` since ${clock(webhook.down_since, now)} (${span(now - webhook.down_since)})`;
    const why = webhook.last_error ? `: ${visible(webhook.last_error.reason)}` : "";
    if (webhook.refusing)
      return [
        {
          level: "bad",
          title: `${name} refuses everything`,
          text: `Its endpoint has refused every delivery${since}${why}. Check its URL, token and routes.${waiting} None becomes a dead letter meanwhile.`,
          link,
        },
      ];
    return [
      {
        level: "bad",
        title: `${name} is failing`,
        text: `Its endpoint fails${since}${why}.${waiting} It is tried again by itself.`,
        link,
      },
    ];
  }
  if (webhook.oldest_seconds > LATE)
    return [
      {
        level: "warn",
        title: `${name} is behind`,
        text: `Its endpoint answers, but the oldest delivery has waited for ${span(webhook.oldest_seconds)}.${waiting}`,
        link,
      },
    ];
  if (used > FULL) return [{ level: "warn", title: `${name} has little room left`, text: `Its endpoint answers.${waiting}`, link }];
  return [];
}
