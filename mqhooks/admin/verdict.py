"""
Judge a bridge by its numbers, and list its problems in words, the worst first.

The texts have no times of day, which depend on the reader's time zone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mqhooks.admin.words import plural, rate, short, size, span

LATE = 60
"""Seconds until a waiting delivery is reported although its endpoint answers."""

FULL = 0.8
"""Used share of its room in the outbox from which a webhook is reported."""

NAME = 60
"""Characters of a name shown."""

REASON = 300
"""Characters of an error shown."""

SAID = 200
"""Characters of an answer shown."""

_PLACES = {"memory": "in memory, and would be lost if mqhooks ended", "sqlite": "on disk", "jetstream": "in JetStream"}

Problem = dict[str, Any]


def judge(status: Mapping[str, Any]) -> dict[str, Any]:
    """
    Judge a status.

    :param status: the answer to ``GET /api/status``, except for the verdict.
    :returns: the ``level``, which is ``good``, ``warn`` or ``bad``, a ``headline``, a ``summary``, and the ``problems``, the
        worst first: each with its level, a title, a text, and the part of the page that shows it. Names and answers in them
        come from outside.
    """
    found = sorted(_problems(status), key=lambda problem: str(problem["level"]))
    return {
        "level": found[0]["level"] if found else "good",
        "headline": _headline(found) if found else "All is well",
        "summary": _summary(status),
        "problems": found,
    }


def absent(source: Mapping[str, Any], sources: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether VerneMQ is absent. Its own webhooks close connections that they do not use, so their events count too."""
    if source["via"] == "webhooks":
        return not source["connections"] and not source["events"]
    return not any(each["connections"] for each in sources if each["via"] != "webhooks")


def said(webhook: Mapping[str, Any]) -> str:
    """Quote, in one line, the answer that was the endpoint's last error; empty when that error was not an answer."""
    error, answer = webhook["last_error"], webhook["last_answer"]
    if error is None or answer is None or answer["at"] != error["at"]:
        return ""
    body = " ".join(answer["body"].split())
    return f" It said: “{short(body, SAID)}”." if body else ""


def _problems(status: Mapping[str, Any]) -> Iterator[Problem]:
    outbox, sources = status["outbox"], status["sources"]
    for file in outbox["damaged"]:
        take = "Recover what can still be read: mqhooks outbox salvage"
        yield _bad("A damaged outbox was set aside", f"{take} {file}")
    if outbox["failing"] is not None:
        room = "; free some disk space" if outbox["kind"] == "sqlite" else ""
        what = f"{short(outbox['failing'], REASON)}. Nothing more is accepted{room}. It resumes on its own."
        yield _bad("The outbox cannot be written", what)
    # Two sources may have the same problem.
    yield from {problem["title"]: problem for source in sources for problem in _source(source, sources)}.values()
    for webhook in status["webhooks"]:
        yield from _webhook(webhook, status)
    yield from _cluster(status["cluster"])
    for sink in status["sinks"]:
        if not sink["running"]:
            why = "This sink was stopped, or did not start. The log says why."
            yield _warn(f"{short(sink['name'], NAME)} is not running", why, "sinks-section")
    if outbox["dead"]:
        why = (
            "The log says why."
            if outbox["kind"] == "memory"
            else "See why, with mqhooks dead list --groups for example, then replay or purge them."
        )
        yield _warn(plural(outbox["dead"], "dead letter"), f"Deliveries that were given up. {why}", "letters-section")


def _source(source: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    if source["via"] == "webhooks":
        if absent(source, sources):
            what = "Is the broker up, and does vmq-admin webhooks show list this address?"
            yield _warn("VerneMQ has posted nothing yet", what, "sidecar-title")
        title, text = "VerneMQ's events are refused", "They are lost"
    else:
        if absent(source, sources):
            what = "It drops events meanwhile. Is the broker up, and does vmq-admin plugin show list vmq_events_sidecar?"
            back = "After an outage it reconnects within two minutes."
            yield _bad("VerneMQ is not connected", f"{what} {back}", "sidecar-title")
        title, text = "VerneMQ is held up", "Its connections are not read"
    if source["paused"] and not absent(source, sources):
        why = "because the outbox has no room. See which webhook cannot deliver fast enough."
        yield _bad(title, f"{text}, {why}", "webhooks-title")


def _webhook(webhook: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[Problem]:
    name, link = short(webhook["name"], NAME), f"webhook:{webhook['name']}"
    pending, used, now = webhook["pending"], webhook["bytes"] / max(webhook["max_size"], 1), status["now"]
    place = _PLACES[status["outbox"]["kind"]]
    waiting = f"{plural(pending, 'delivery waits', 'deliveries wait')} {place}." if pending else "Nothing is waiting."
    if used > FULL:
        waiting += f" {int(used * 100)} % of its room is used."
    if webhook["state"] == "paused":
        until = webhook["paused_until"]
        end = "until someone resumes it" if until is None else f"for another {span(until - now)}"
        yield _warn(f"{name} is paused", f"Nothing is sent {end}. {waiting}", link)
    elif webhook["state"] == "down":
        since = "" if webhook["down_since"] is None else f" for {span(now - webhook['down_since'])}"
        error = webhook["last_error"]
        why = "." if error is None else f": {short(error['reason'], REASON)}.{said(webhook)}"
        if webhook["refusing"]:
            what = f"Its endpoint has refused every delivery{since}{why} Check its URL, token and routes."
            yield _bad(f"{name} refuses everything", f"{what} {waiting} None becomes a dead letter meanwhile.", link)
        else:
            again = "mqhooks keeps trying; Try now tries at once."
            yield _bad(f"{name} is failing", f"Its endpoint has failed{since}{why} {waiting} {again}", link)
    elif (webhook["oldest_seconds"] or 0) > LATE:
        oldest = f"the oldest delivery has waited for {span(webhook['oldest_seconds'])}"
        yield _warn(f"{name} is behind", f"Its endpoint answers, but {oldest}. {waiting}", link)
    elif used > FULL:
        yield _warn(f"{name} has little room left", f"Its endpoint answers. {waiting}", link)


def _cluster(cluster: Mapping[str, Any] | None) -> Iterator[Problem]:
    if cluster is None:
        return
    for webhook in cluster["webhooks"]:
        name = short(webhook["name"], NAME)
        if webhook["unowned"]:
            why = f"{plural(webhook['unowned'], 'partition')} without an owner: the bridges' logs say why."
            yield _bad(f"{name} is only partly delivered", why, "cluster-section")
        if webhook["replicas"] and webhook["replicas"] < cluster["replicas"]:
            what = f"{webhook['replicas']} of {cluster['replicas']} replicas have all of {name}."
            yield _warn("A NATS server is missing", what, "cluster-section")


def _bad(title: str, text: str, link: str | None = None) -> Problem:
    return {"level": "bad", "title": title, "text": text, "link": link}


def _warn(title: str, text: str, link: str) -> Problem:
    return _bad(title, text, link) | {"level": "warn"}


def _headline(problems: Sequence[Problem]) -> str:
    more = len(problems) - 2
    return ", ".join(problem["title"] for problem in problems[:2]) + (f", and {more} more" if more > 0 else "")


def _summary(status: Mapping[str, Any]) -> str:
    sources, webhooks = status["sources"], status["webhooks"]
    pending = sum(webhook["pending"] for webhook in webhooks)
    if all(absent(source, sources) for source in sources):
        come = "VerneMQ is not connected."
    else:
        connections = plural(sum(source["connections"] for source in sources), "connection")
        come = f"VerneMQ is connected ({connections}), {rate(status['rate'])} events/s."
    if not webhooks:
        return come
    if not pending:
        return f"{come} Nothing is waiting."
    return f"{come} {plural(pending, 'delivery waits', 'deliveries wait')}, {size(status['outbox']['bytes'])}."
