"""
A source of one's own: each line of JSON that comes over TCP is a message, and is delivered like one of VerneMQ's.

    MQHOOKS_URL=http://127.0.0.1:8080/hook twistd -ny custom_source.tac
    echo '{"client": "boiler", "topic": "sensors/boiler", "payload": "21.5"}' | nc -N 127.0.0.1 8899
"""

import json
import os
import time

from twisted.application.service import Application

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import Settings
from mqhooks.events import Event, Publish
from mqhooks.nanomq.settings import Rule
from mqhooks.sources.connections import SourceFactory, SourceProtocol
from mqhooks.sources.counters import SourceCounters
from mqhooks.sources.listening import SourceService
from mqhooks.webhook.settings import WebhookSettings


class Lines(SourceProtocol):
    rest = b""

    def dataReceived(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > 1 << 20:
            self.abort()
        # What one read has brought is one batch. The next read waits until it is on disk, and there is room for more.
        accepted = self.factory.handover.receive([event for line in lines for event in self.read(line)])
        if accepted is not None:
            self.transport.pauseProducing()
            accepted.addCallback(lambda _: self.transport.resumeProducing())

    def read(self, line):
        try:
            told = json.loads(line)
            client, topic, payload = str(told["client"]), str(told["topic"]), str(told["payload"]).encode()
        except (ValueError, LookupError, TypeError):
            self.factory.counters.malformed += 1
            return
        now = time.time_ns()
        message = Publish(now, client_id=client, topic=topic, payload=payload)
        # Lines come in their order, so they need no merge window.
        yield Event("on_publish", message, now, "", client, "", window=False)


class LineCounters(SourceCounters):
    malformed = 0


class LineFactory(SourceFactory):
    protocol = Lines


class LineService(SourceService):
    via = awaited = "lines"


# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/hook")
listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8899:interface=127.0.0.1")
webhook = WebhookSettings("webhook", url, (Rule("on_message_publish"),))
settings = Settings(webhooks=(webhook,), admin=AdminSettings(os.environ.get("MQHOOKS_ADMIN")))


def lines(sink):
    return LineService(reactor, [listen], LineFactory(sink, LineCounters()))


application = Application("mqhooks-lines")
build(settings, reactor, sidecars=[], sources=[lines]).setServiceParent(application)
