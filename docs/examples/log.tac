"""
Every event as a line of JSON, in VerneMQ's own words:

    twistd -ny log.tac | jq -r '[.action, .client_id, .topic] | @tsv'

MQHOOKS_LOG=/var/log/mqhooks.jsonl writes to that file instead of standard output. After logrotate has renamed it, SIGHUP
(kill -HUP) makes it begin a new one.
"""

import os
import sys

from twisted.application.service import Application
from twisted.internet import reactor
from twisted.logger import ILogObserver, textFileLogObserver

from mqhooks.support.services import OrderedService
from mqhooks.sources.sidecar.protocol import SidecarFactory
from mqhooks.sources.sidecar.listener import SidecarService
from mqhooks.sinks import LogSink

# Where VerneMQ's events sidecar connects to, as a Twisted endpoint: its port is 8890 unless it is configured otherwise.
listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")
path = os.environ.get("MQHOOKS_LOG")

sink = LogSink(reactor, path) if path else LogSink(reactor)
listener = SidecarService(reactor, [listen], SidecarFactory(reactor, sink))

application = Application("mqhooks-log")

# Standard output belongs to the events; what the program itself has to say goes to standard error.
application.setComponent(ILogObserver, textFileLogObserver(sys.stderr))

# Started in this order and stopped in the reverse one: whoever listens needs the sink.
OrderedService([sink, listener]).setServiceParent(application)
