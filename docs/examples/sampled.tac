"""
What a tenth of the clients publish below sensors/, as webhooks: enough for a dashboard, and a tenth of the load.

    MQHOOKS_URL=http://127.0.0.1:8080/samples twistd -ny sampled.tac

MQHOOKS_SHARE=0.5 takes half of the clients. Which ones they are stays the same after a restart, and a larger share keeps those
of a smaller one.
"""

import os

from twisted.application.service import Application

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import Settings
from mqhooks.app.webhooks import StoredWebhook
from mqhooks.errors import ConfigError
from mqhooks.nanomq.settings import Rule
from mqhooks.sinks import FilterSink, SampleSink
from mqhooks.webhook.settings import WebhookSettings

listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/samples")
share = float(os.environ.get("MQHOOKS_SHARE", "0.1"))

# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()

samples = WebhookSettings(name="samples", url=url, rules=(Rule("on_message_publish"),), pool_size=4)
try:
    # A webhook within other sinks has an outbox file of its own.
    webhook = StoredWebhook(reactor, samples, "mqhooks-outbox-samples")
except ConfigError as error:
    # One line instead of a traceback.
    raise SystemExit(f"MQHOOKS_URL: {error}") from None

# Events go from the outside in: first the hook and the topic are looked at, then the client's place in the sample.
sink = FilterSink(SampleSink(webhook, share), hooks="on_publish", topics="sensors/#")

application = Application("mqhooks-sampled")
build(Settings(admin=AdminSettings("off")), reactor, sidecars=[listen], sinks=[sink]).setServiceParent(application)
