"""
A sink of one's own: it keeps the set of the clients that are online, and says who comes and goes.

    twistd -ny custom_sink.tac
"""

import os

from twisted.application.service import Application, Service
from twisted.logger import Logger
from zope.interface import implementer

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import Settings
from mqhooks.interfaces import IEventSink


@implementer(IEventSink)
class PresenceSink(Service):
    """
    Says who comes and goes.
    """

    log = Logger()

    def __init__(self):
        self.online = set()

    def receive(self, events):
        """
        Take a batch. Returning None says that all of it is accepted; a sink that needs time returns a Deferred instead.
        """
        for event in events:
            # One client id may be in use at several mountpoints: these are different clients.
            client = (event.mountpoint, event.client_id)
            if event.hook in ("on_register", "on_client_wakeup"):
                self.online.add(client)
            elif event.hook in ("on_client_gone", "on_client_offline"):
                self.online.discard(client)
            else:
                continue
            self.log.info("{hook} {client!r}: {count} online", hook=event.hook, client=event.client_id, count=len(self.online))


listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")

# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()

application = Application("mqhooks-presence")
settings = Settings(admin=AdminSettings("off"))
build(settings, reactor, sidecars=[listen], sinks=[PresenceSink()]).setServiceParent(application)
