"""
A webhook for each client that comes or goes, and a line in a file for everything:

    MQHOOKS_URL=http://127.0.0.1:8080/presence twistd -ny fanout.tac

The file is events.jsonl here, or what MQHOOKS_LOG says. What is not delivered yet waits in the file mqhooks-outbox, also across
restarts. The status page is on port 8891, or where MQHOOKS_ADMIN says; "off" for none.
"""

import os

from twisted.application.service import Application

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import OutboxSettings, Settings
from mqhooks.errors import ConfigError
from mqhooks.nanomq.settings import Rule
from mqhooks.sinks import LogSink
from mqhooks.webhook.settings import WebhookSettings

listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/presence")
path = os.environ.get("MQHOOKS_LOG", "events.jsonl")

# The rules say what is sent, by the names that NanoMQ gives its events.
presence = WebhookSettings(
    name="presence",
    url=url,
    rules=(Rule("on_client_connack"), Rule("on_client_disconnected")),
)
settings = Settings(
    webhooks=(presence,),
    outbox=OutboxSettings(path="mqhooks-outbox"),
    admin=AdminSettings(os.environ.get("MQHOOKS_ADMIN")),
)

# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()

try:
    # The webhook and the file get every event, and neither can stop the other.
    bridge = build(settings, reactor, sidecars=[listen], sinks=[LogSink(reactor, path)])
except ConfigError as error:
    # One line instead of a traceback.
    raise SystemExit(f"MQHOOKS_URL: {error}") from None

application = Application("mqhooks-fanout")
bridge.setServiceParent(application)
