"""
What a tenth of the clients publish below sensors/, as webhooks: enough for a dashboard, and a tenth of the load.

    MQHOOKS_URL=http://127.0.0.1:8080/samples twistd -ny sampled.tac

MQHOOKS_SHARE=0.5 takes half of the clients. Which ones they are stays the same after a restart, and a larger share keeps those
of a smaller one.
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
from mqhooks.sinks import FilterSink, SampleSink
from mqhooks.webhook.sink import WebhookSink

listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/samples")
share = float(os.environ.get("MQHOOKS_SHARE", "0.1"))

samples = WebhookSettings(name="samples", url=url, rules=(Rule("on_message_publish"),), pool_size=4)
try:
    webhook = WebhookSink(reactor, samples, MemoryOutbox())
except ConfigError as error:
    # One line instead of a traceback.
    raise SystemExit(f"MQHOOKS_URL: {error}") from None

# Events go from the outside in: first the hook and the topic are looked at, then the client's place in the sample.
sink = FilterSink(SampleSink(webhook, share), hooks="on_publish", topics="sensors/#")
listener = SidecarService(reactor, [listen], SidecarFactory(reactor, sink))

application = Application("mqhooks-sampled")
OrderedService([sink, listener]).setServiceParent(application)
