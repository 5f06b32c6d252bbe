"""Long payloads, the whole way: they arrive whole and signed, each once."""

import json
import socket
from base64 import b64decode
from binascii import crc32
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from mqhooks.outbox.deadletters import Letters
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.support.signatures import verify
from tests.frames import envelope, framed
from tests.processes import Twistd
from tests.waiting import until

SECRET = "whsec_bXFob29rcyBzaWducyBsb25nIGJvZGllcyB0b28="
SIZE = 15 << 20
PAYLOADS = {
    "text": b"x" * SIZE,
    "binary": b"\xff\x00" * (SIZE // 2),
    "control": b"\x01" * SIZE,
    "emoji": "😀abcd".encode() * (SIZE // 8),
}


class Taker(Protocol):
    """Takes requests, and answers each by what its factory says."""

    def connectionMade(self):
        self.data = bytearray()
        self.needed = 0

    def dataReceived(self, data):
        self.data += data
        if not self.needed:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return
            self.head = bytes(self.data[:end]).decode()
            del self.data[: end + 4]
            self.headers = [tuple(line.split(": ", 1)) for line in self.head.split("\r\n")[1:]]
            self.needed = int(dict(self.headers)["Content-Length"])
        if len(self.data) >= self.needed:
            body, self.data, self.needed = bytes(self.data), bytearray(), 0
            status = self.factory.took(self.headers, body)
            self.transport.write(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)


class LongPayloadTests(TestCase):
    timeout = 900

    async def start(self):
        self.taken = {}
        self.ids = []
        self.refused = []
        self.all_taken = Deferred()
        factory = Factory.forProtocol(Taker)
        factory.took = self.take
        port = await serverFromString(reactor, "tcp:0:interface=127.0.0.1").listen(factory)
        self.addCleanup(port.stopListening)
        config = Path(self.mktemp()).resolve()
        url = f"http://127.0.0.1:{port.getHost().port}/hook"
        rules = '[{ event = on_message_publish, topic = "t/#" }, { event = on_publish, topic = "own" }]'
        self.outbox = f"{config}.outbox"
        config.write_text(
            f'webhook {{ url = "{url}", secret = "{SECRET}", cancel_timeout = 10m, events = {rules} }}\n'
            f'mqhooks.outbox.path = "{self.outbox}"\n',
            encoding="utf-8",
        )
        self.bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", "--config", str(config))
        match = await self.bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        self.target = ("127.0.0.1", int(match[1]))

    def take(self, headers, body):
        self.ids.append(dict(headers)["webhook-id"])
        timestamp = int(dict(headers)["webhook-timestamp"])
        verify([SECRET], headers, body, timestamp)
        found = json.loads(body)
        client = found["client_id" if found["action"] == "publish" else "from_client_id"]
        if client == "refused" and not self.refused:
            self.refused.append(crc32(body))
            return 413
        payload = found["payload"]
        payload = b64decode(payload) if found.get("payload_encoding") == "base64" else payload.encode()
        self.taken[client] = (crc32(payload), crc32(body))
        if len(self.taken) == self.expected:
            self.all_taken.callback(None)
        return 204

    def send(self, client, payload, topic="t/1"):
        """
        Send a frame in a thread. The bridge skips a long frame that stands still for seconds while others wait, and the
        reactor does, while it verifies what has come.
        """
        message = OnPublish(client_id=client, topic=topic, payload=payload)
        message.timestamp.GetCurrentTime()
        frame = framed(envelope(message))

        def write():
            with socket.create_connection(self.target) as connection:
                connection.sendall(frame)

        return deferToThread(write)

    async def test_ten_arrive_and_each_event_is_delivered_once(self):
        await self.start()
        sent = {f"{name} {number}": payload for name, payload in PAYLOADS.items() for number in range(3)}
        self.expected = len(sent)
        await gatherResults(
            [self.send(client, payload, "own" if client.endswith("2") else "t/1") for client, payload in sent.items()]
        )
        await self.all_taken
        self.assertEqual({client: taken[0] for client, taken in self.taken.items()}, {c: crc32(p) for c, p in sent.items()})
        self.assertEqual(len(self.ids), len(sent))
        self.assertEqual(len(set(self.ids)), len(sent))
        self.assertNotIn("Traceback", self.bridge.stdout + self.bridge.stderr)

    async def test_one_that_is_refused_is_a_dead_letter_and_can_be_replayed(self):
        await self.start()
        self.expected = 1
        await self.send("refused", PAYLOADS["binary"])
        await self.bridge.until(r"413.* became a dead letter", anywhere=True)
        letters = Letters(self.outbox)
        self.addCleanup(letters.close)
        # What the log says is not committed yet.
        (letter,) = await until(lambda: list(letters))
        self.assertEqual(crc32(letter.delivery.body), self.refused[0])
        letters.ask("replay", [letter.number])
        await self.all_taken
        self.assertEqual(self.taken["refused"], (crc32(PAYLOADS["binary"]), self.refused[0]))
        self.assertEqual(list(letters), [])
        self.assertNotIn("Traceback", self.bridge.stdout + self.bridge.stderr)
