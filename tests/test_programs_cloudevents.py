"""What npm's CloudEvents SDK makes of our requests."""

from urllib.parse import unquote

from mqhooks.testing import TIMESTAMP, make_event
from tests.programs import ProgramsCase, missing_node, said, script
from tests.waiting import until

EVENTS = (
    ("meter-1", "sensors/1", b'{"t": 21.5, "unit": "\xc2\xb0C"}'),
    ('a "b" %20 \u00fc/\U0001f600', "haus/k\u00fcche/+%", b"plain text"),
    ("meter-2", "sensors/2", b"\xff\x00"),
)


class ReceiverTests(ProgramsCase):
    skip = missing_node()

    async def test_each_mode(self):
        receiver = script(self, "cloudevents.js")
        await until(lambda: said(receiver) or receiver.ended.called)
        url = f"http://127.0.0.1:{said(receiver)[0]['port']}"
        rules = 'body.encoding = json, events = [{ event = on_message_publish }], cloudevents.source = "//broker.example/mqtt"'
        more = {"structured": "", "binary": "", "batch": "batch { size = 10, linger = 50ms }"}
        blocks = [
            f'{mode} {{ url = "{url}/{mode}", format = cloudevents, mode = {mode}, {rules}\n{more[mode]} }}' for mode in more
        ]
        self.configure("webhooks { " + "\n".join(blocks) + " }")
        await self.start()
        self.send(*(make_event("on_publish", client_id=client, topic=topic, payload=data) for client, topic, data in EVENTS))

        def came(mode):
            return [event for told in said(receiver)[1:] if told["path"] == f"/{mode}" for event in told.get("events", ())]

        await until(lambda: all(len(came(mode)) == len(EVENTS) for mode in more) or "problem" in receiver.stdout)
        self.assertNotIn("problem", receiver.stdout)
        for mode in more:
            # In headers they are percent-encoded, which the SDK leaves to its users.
            decoded = unquote if mode == "binary" else str
            found = {decoded(event["partitionkey"]): event for event in came(mode)}
            self.assertEqual(set(found), {client for client, *_ in EVENTS})
            for (client, topic, _), payload in zip(EVENTS, ({"t": 21.5, "unit": "°C"}, "plain text", "/wA="), strict=True):
                event = found[client]
                self.assertEqual(decoded(event["subject"]), topic)
                self.assertEqual(
                    (event["specversion"], event["type"], event["source"], event["datacontenttype"]),
                    ("1.0", "io.nanomq.on_message_publish", "//broker.example/mqtt", "application/json"),
                )
                self.assertTrue(event["id"].startswith("msg_"), event["id"])
                self.assertTrue(event["time"].startswith("2026-01-01T00:00:00.123"), event["time"])
                data = event["data"]
                self.assertEqual((data["from_client_id"], data["ts"]), (client, TIMESTAMP // 1_000_000))
                self.assertEqual(data["payload"], payload)
        self.assertEqual([sink.counters.failed + sink.counters.refused for sink in self.bridge.webhooks], [0] * 3)
