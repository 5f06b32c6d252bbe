"""
Every event as a line of JSON, in VerneMQ's own words:

    twistd -ny log.tac | jq -r '[.action, .client_id, .topic] | @tsv'

MQHOOKS_LOG=/var/log/mqhooks.jsonl writes to that file instead of standard output. After logrotate has renamed it, SIGHUP
(kill -HUP) starts a new one.
"""

import os
import sys

from twisted.application.service import Application
from twisted.logger import ILogObserver, textFileLogObserver

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import Settings
from mqhooks.sinks import LogSink

# Where VerneMQ's events sidecar connects to, as a Twisted endpoint: its port is 8890 unless it is configured otherwise.
listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
path = os.environ.get("MQHOOKS_LOG")

# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()
sink = LogSink(reactor, path) if path else LogSink(reactor)

application = Application("mqhooks-log")

# Standard output belongs to the events; the log goes to standard error.
application.setComponent(ILogObserver, textFileLogObserver(sys.stderr))

build(Settings(admin=AdminSettings("off")), reactor, sidecars=[listen], sinks=[sink]).setServiceParent(application)
