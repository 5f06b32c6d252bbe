"""
Reading ``/metrics``, and checking the identities that hold at every moment.
"""

from __future__ import annotations

from collections import defaultdict

import treq
from prometheus_client.parser import text_string_to_metric_families
from twisted.web.client import Agent


async def read_metrics(reactor, origin, **headers):
    """Return each metric's value by its name and its labels' values, in the order of the labels' names."""
    answer = await treq.get(
        f"{origin}/metrics", headers=headers, agent=Agent(reactor, connectTimeout=10), reactor=reactor, timeout=30
    )
    text = await treq.text_content(answer)
    if answer.code != 200:
        raise AssertionError(f"/metrics answered {answer.code}: {text}")
    samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    return samples


def broken_identities(samples):
    """Return the identities that do not hold."""
    broken = []

    def expect(what, left, right):
        if left != right:
            broken.append(f"{what}: {left} is not {right}")

    frames = samples["mqhooks_frames_total",]
    received = sum(value for key, value in samples.items() if key[0] == "mqhooks_events_received_total")
    others = sum(samples[f"mqhooks_frames_{kind}_total",] for kind in ("malformed", "unknown", "empty"))
    sources = {key[1]: value for key, value in samples.items() if key[0] == "mqhooks_source_events_total"}
    expect("frames = malformed + unknown + empty + events", frames, others + sources.get("sidecar", 0))
    expect("events = those of all sources", received, sum(sources.values()))
    for name in [key[1] for key in samples if key[0] == "mqhooks_outbox_pending"]:
        of = defaultdict(float)
        for key, value in samples.items():
            if name in key[1:]:
                of[key[0]] += value
        filtered, matched = of["mqhooks_events_filtered_total"], of["mqhooks_events_matched_total"]
        expect(f"{name}: events = filtered + matched", received, filtered + matched)
        accepted = of["mqhooks_deliveries_accepted_total"]
        settled = sum(of[f"mqhooks_deliveries_{kind}_total"] for kind in ("delivered", "dead", "dropped", "handed"))
        pending = of["mqhooks_outbox_pending"]
        expect(f"{name}: accepted = delivered + dead + dropped + handed + pending", accepted, settled + pending)
        ages = of["mqhooks_delivery_age_seconds_count"]
        expect(f"{name}: delivered = ages observed", of["mqhooks_deliveries_delivered_total"], ages)
    return broken
