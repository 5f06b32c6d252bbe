"""
An outbox of one's own: it encrypts bodies on their way into the SQLite file, and decrypts them on their way out.

    MQHOOKS_KEY=$(python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())')
    MQHOOKS_KEY=$MQHOOKS_KEY MQHOOKS_URL=http://127.0.0.1:8080/hook twistd -ny custom_outbox.tac
"""

import os

from cryptography.fernet import Fernet
from msgspec.structs import replace
from twisted.application.service import Application
from twisted.internet.defer import Deferred
from twisted.python.components import proxyForInterface

from mqhooks.admin.settings import AdminSettings
from mqhooks.app.build import build
from mqhooks.app.reactor import install
from mqhooks.app.settings import Settings
from mqhooks.interfaces import IOutbox
from mqhooks.nanomq.settings import Rule
from mqhooks.outbox.sqlite import SqliteStore
from mqhooks.support.services import OrderedService
from mqhooks.webhook.settings import WebhookSettings


class EncryptedOutbox(proxyForInterface(IOutbox, "inner")):
    """
    Keeps deliveries in another outbox, which sees their bodies encrypted only. Client ids stay readable: order goes by them.
    """

    def __init__(self, inner, key):
        super().__init__(inner)
        self.fernet = Fernet(key)

    def append(self, deliveries, *, room=True):
        return self.inner.append([self.encrypted(delivery) for delivery in deliveries], room=room)

    def bury(self, delivery, *why):
        self.inner.bury(self.encrypted(delivery), *why)

    def claim(self, limit, size):
        return self.decrypted(self.inner.claim(limit, size))

    def recall(self, places):
        return self.decrypted(self.inner.recall(places))

    # Others may hold these deliveries too, so copies are changed.

    def encrypted(self, delivery):
        return replace(delivery, body=self.fernet.encrypt(delivery.body))

    def decrypted(self, deliveries):
        if isinstance(deliveries, Deferred):
            return deliveries.addCallback(self.decrypted)
        return [replace(delivery, body=self.fernet.decrypt(delivery.body)) for delivery in deliveries]


# Instead of "from twisted.internet import reactor": timers that ignore changes of the system clock.
reactor = install()

key = os.environ["MQHOOKS_KEY"]
url = os.environ.get("MQHOOKS_URL", "http://127.0.0.1:8080/hook")
listen = os.environ.get("MQHOOKS_LISTEN", "tcp:8890:interface=127.0.0.1")

webhook = WebhookSettings("webhook", url, (Rule("on_client_connack"), Rule("on_message_publish")))
settings = Settings(webhooks=(webhook,), admin=AdminSettings(os.environ.get("MQHOOKS_ADMIN")))
store = SqliteStore(reactor, "encrypted-outbox")
bridge = build(settings, reactor, sidecars=[listen], outbox=lambda name: EncryptedOutbox(store.outbox(name), key))

application = Application("mqhooks-encrypted")
# The file is opened before the bridge needs it, and closed after.
OrderedService([store, bridge]).setServiceParent(application)
