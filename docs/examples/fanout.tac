"""
A webhook for each client that comes or goes, and a line in a file for everything:

    MQHOOKS_URL=http://127.0.0.1:8080/presence twistd -ny fanout.tac

The file is events.jsonl here, or what MQHOOKS_LOG says.
"""

import os

from twisted.application.service import Application
from twisted.internet import reactor

from mqhooks.errors import ConfigError
from mqhooks.nanomq.settings import Rule
from mqhooks.webhook.settings import WebhookSettings
from mqhooks.outbox.memory import MemoryOutbox
from mqhooks.support.services import OrderedService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sinks import FanOut, LogSink
from mqhooks.webhook.sink import WebhookSink

listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/presence")
path = os.environ.get("MQHOOKS_LOG", "events.jsonl")

# The rules say what is sent, by the names that NanoMQ gives its events.
presence = WebhookSettings(
    name="presence",
    url=url,
    rules=(Rule("on_client_connack"), Rule("on_client_disconnected")),
)

# What is not delivered yet waits in the outbox. When it is full, and only then, VerneMQ's connections are not read any more.
try:
    webhook = WebhookSink(reactor, presence, MemoryOutbox(max_size=64 << 20))
except ConfigError as error:
    # One line instead of a traceback.
    raise SystemExit(f"MQHOOKS_URL: {error}") from None

# Both get every event, and neither can stop the other.
sink = FanOut([webhook, LogSink(reactor, path)])
listener = SidecarService(reactor, [listen], SidecarFactory(reactor, sink))

application = Application("mqhooks-fanout")
OrderedService([sink, listener]).setServiceParent(application)
