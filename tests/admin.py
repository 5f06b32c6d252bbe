"""
A bridge within the test's own process, and requests to its status page over real connections.
"""

from __future__ import annotations

import json
from pathlib import Path

import treq
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from mqhooks.admin.bridge import Bridge
from mqhooks.admin.server import AdminService
from mqhooks.admin.settings import AdminSettings
from mqhooks.app.sendtest import make_test
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.app.webhooks import transport_for
from mqhooks.nanomq.settings import Rule
from mqhooks.nats.settings import NATSSettings, Server
from mqhooks.outbox.jetstream.members import Share
from mqhooks.outbox.jetstream.store import JetStreamSettings
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.sinks import FanOut
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.support.services import OrderedService
from mqhooks.testing import make_event
from mqhooks.webhook.settings import RetrySettings, WebhookSettings
from mqhooks.webhook.sink import WebhookSink
from tests.endpoints import Endpoint
from tests.frames import envelope, framed
from tests.outboxes import Faults
from tests.waiting import until

ANYWHERE = "tcp:0:interface=127.0.0.1"
TOKEN = "a-token-of-24-characters"
RULES = (Rule("on_message_publish"),)
RETRY = RetrySettings(initial=0.05, maximum=0.05, jitter=0)


class WatchedSidecar(SidecarFactory):
    """Keeps the watcher of its events for the test."""

    watcher = None

    def watch(self, watcher):
        self.watcher = watcher
        super().watch(watcher)


class Engine:
    """Stands for the outboxes that two bridges share in JetStream."""

    me, server, failing = "node-1", "10.0.0.1:4222", None
    settings = JetStreamSettings(NATSSettings((Server("10.0.0.1", 4222),)), partitions=3)

    def __init__(self, **shares):
        self.shares = shares or {
            "node_1": [Share(0, 30, 1_700_000_000_000, "nats-1", 3)],
            "node_2": [Share(2, 1, None, "nats-3", 2)],
        }

    def outbox(self, name):
        """Return the outbox of a webhook: all have the same."""
        return self

    def there(self):
        """Return the bridges that are there, and the shares that each reports."""
        return {name.replace("_", "-"): shares for name, shares in self.shares.items()}


class AdminCase(TestCase):
    """Starts a bridge, and asks its status page."""

    timeout = 300

    async def start(self, *names, answer=None, admin=None, memory=False, path=None, query="", **settings):
        """
        Start a bridge with webhooks of these names, all of which go to one endpoint.

        :param answer: called by the endpoint with each request.
        :param admin: the status page's settings.
        :param path: the outbox that an earlier bridge has left.
        :param query: appended to the endpoint's URL.
        """
        self.endpoint = Endpoint(answer)
        url = self.endpoint.listen(self, reactor) + query
        defaults = {"merge_window": 0, "retry": RETRY, "rules": RULES}
        webhooks = tuple(WebhookSettings(name, url, **defaults | settings) for name in names or ("billing",))
        self.path = path or Path(self.mktemp()).resolve()
        self.faults = Faults()
        self.store = None if memory else SqliteStore(reactor, str(self.path), open_file=self.faults.open)
        self.sinks = [
            WebhookSink(reactor, each, MemoryOutbox() if memory else self.store.outbox(each.name), transport_for(reactor, each))
            for each in webhooks
        ]
        fan_out = FanOut(self.sinks)
        self.sidecar = WatchedSidecar(reactor, fan_out)
        listener = SidecarService(reactor, [ANYWHERE], self.sidecar)
        outbox = OutboxSettings(kind="memory" if memory else "sqlite", path=str(self.path))
        admin = admin or AdminSettings(ANYWHERE)
        self.bridge = Bridge(
            Settings(webhooks, outbox=outbox, admin=admin), [listener], self.sinks, self.store, make_test=make_test
        )
        self.admin = AdminService(reactor, self.bridge, admin)
        children = [fan_out, self.admin, listener]
        self.service = OrderedService(children if memory else [self.store, *children])
        self.service.startService()
        self.addCleanup(self.stop)
        self.broker = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", listener.addresses[0].port), Protocol())
        self.addCleanup(self.broker.transport.abortConnection)
        self.port = self.admin.address.port
        self.origin = f"http://127.0.0.1:{self.port}"

    def stop(self):
        """Stop the bridge, unless it is stopped."""
        return self.service.stopService() if self.service.running else None

    def send(self, *contents):
        """Send frames as VerneMQ does."""
        self.broker.transport.write(b"".join(map(framed, contents)))

    def publish(self, count=1, **fields):
        """Send messages, each from another client."""
        self.send(*(envelope(make_event("on_publish", client_id=f"c{index}", **fields).message) for index in range(count)))

    async def bury(self, count, name="billing", status=422):
        """Make dead letters, and wait until they are on disk."""
        before = {sink.settings.name: sink.outbox.letters for sink in self.sinks}
        answer, self.endpoint.answer = self.endpoint.answer, lambda request: request.connection.reply(status, b"no such meter")
        self.publish(count)
        await until(lambda: all(sink.outbox.letters == before[sink.settings.name] + count for sink in self.sinks))
        await self.store.flushed()
        self.endpoint.answer = answer

    # Requests.

    async def ask(self, path, method="GET", *, headers=(), body=None, change=True):
        """Send a request, keep the answer's headers, and return its status and its body as text."""
        sent = dict(headers)
        if method != "GET" and change:
            sent.setdefault("X-Mqhooks", "1")
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        answer = await treq.request(
            method, f"{self.origin}{path}", headers=sent, data=data, agent=Agent(reactor), reactor=reactor, timeout=60
        )
        self.headers = {name.decode().lower(): values[0].decode() for name, values in answer.headers.getAllRawHeaders()}
        return answer.code, await treq.text_content(answer)

    async def json(self, path, method="GET", *, status=200, **options):
        """Send a request, and return its answer, which must be JSON."""
        code, text = await self.ask(path, method, **options)
        self.assertEqual((code, self.headers["content-type"]), (status, "application/json"), text)
        return json.loads(text)

    async def refused(self, status, path, method="GET", **options):
        """Send a request that must be refused, and return the reason."""
        answer = await self.json(path, method, status=status, **options)
        self.assertEqual(list(answer), ["error"])
        self.assertNotIn("\n", answer["error"])
        return answer["error"]

    async def follow(self, path="/api/stream", **headers):
        """Begin to read server-sent events."""
        follower = Follower()
        follower.protocol = await connectProtocol(HostnameEndpoint(reactor, "127.0.0.1", self.port), follower)
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{self.port}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        follower.transport.write("\r\n".join([*lines, "", ""]).encode())
        self.addCleanup(follower.transport.abortConnection)
        return follower


class Follower(Protocol):
    """Reads server-sent events. They come in chunks, whose lengths are ignored."""

    def __init__(self):
        self.buffer = b""
        self.seen = []
        self.closed = Deferred()

    def dataReceived(self, data):
        self.buffer += data

    def connectionLost(self, reason):
        self.closed.callback(None)

    def heard(self, name):
        """Return the data of all events of one kind."""
        found = []
        for message in self.buffer.decode().split("\n\n"):
            lines = [line for line in message.replace("\r\n", "\n").split("\n") if ": " in line]
            fields = dict(line.split(": ", 1) for line in lines)
            if fields.get("event") == name and "data" in fields:
                found.append(json.loads(fields["data"]))
        return found
