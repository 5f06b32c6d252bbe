"""Long payloads, the whole way: they arrive whole and signed, and memory stays bounded whatever they become in JSON."""

import json
import sys
from base64 import b64decode
from binascii import crc32
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SkipTest, TestCase

from mqhooks.outbox.delivery import whole
from mqhooks.outbox.letters import Letters
from mqhooks.pb.on_publish_pb2 import OnPublish
from mqhooks.webhook.signature import verify
from tests.frames import envelope, framed
from tests.processes import Twistd

SECRET = "whsec_bXFob29rcyBzaWducyBsb25nIGJvZGllcyB0b28="
SIZE = 15 << 20
PAYLOADS = {
    "text": b"x" * SIZE,
    "binary": b"\xff\x00" * (SIZE // 2),
    "control": b"\x01" * SIZE,
    "emoji": "😀abcd".encode() * (SIZE // 8),
}
ROOM = 60 << 20
"""How much more memory the bridge may take than it has at its start."""


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
    timeout = 120

    async def start(self):
        self.taken = {}
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
            f'webhook {{ url = "{url}", secret = "{SECRET}", cancel_timeout = 60s, events = {rules} }}\n'
            f'mqhooks.outbox.path = "{self.outbox}"\n',
            encoding="utf-8",
        )
        self.bridge = Twistd(self, "mqhooks", "--sidecar-port", "0", "--admin-port", "0", "--config", str(config))
        match = await self.bridge.until(r"listening for VerneMQ on 127\.0\.0\.1:(\d+)")
        self.target = f"tcp:127.0.0.1:{match[1]}"

    def take(self, headers, body):
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

    async def send(self, client, payload, topic="t/1"):
        message = OnPublish(client_id=client, topic=topic, payload=payload)
        message.timestamp.GetCurrentTime()
        protocol = await clientFromString(reactor, self.target).connect(Factory.forProtocol(Protocol))
        protocol.transport.write(framed(envelope(message)))
        protocol.transport.loseConnection()

    def memory(self):
        status = Path(f"/proc/{self.bridge.process.pid}/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) << 10

    async def test_they_arrive_and_memory_is_bounded(self):
        if not sys.platform.startswith("linux"):
            raise SkipTest("memory is read from Linux's /proc")
        await self.start()
        before = self.memory()
        self.expected = 2 * len(PAYLOADS)
        for name, payload in PAYLOADS.items():
            await self.send(name, payload)
            await self.send(f"own {name}", payload, "own")
        await self.all_taken
        for name, payload in PAYLOADS.items():
            self.assertEqual(self.taken[name][0], crc32(payload), name)
            self.assertEqual(self.taken[f"own {name}"][0], crc32(payload), name)
        self.assertLess(self.memory() - before, ROOM)
        self.assertNotIn("Traceback", self.bridge.stdout + self.bridge.stderr)

    async def test_one_that_is_refused_is_a_dead_letter_and_can_be_replayed(self):
        await self.start()
        self.expected = 1
        await self.send("refused", PAYLOADS["binary"])
        await self.bridge.until(r"413.* is a dead letter", anywhere=True)
        letters = Letters(self.outbox)
        self.addCleanup(letters.close)
        # What the log says is not committed yet.
        while not (found := list(letters)):
            await deferLater(reactor, 0.1)
        (letter,) = found
        self.assertEqual(crc32(whole(letter.delivery.body)), self.refused[0])
        letters.ask("replay", [letter.number])
        await self.all_taken
        self.assertEqual(self.taken["refused"], (crc32(PAYLOADS["binary"]), self.refused[0]))
        self.assertEqual(list(letters), [])
        self.assertNotIn("Traceback", self.bridge.stdout + self.bridge.stderr)
