"""The outbox of the documentation that encrypts bodies keeps the contract of every outbox."""

import re
from pathlib import Path

from cryptography.fernet import Fernet
from twisted.trial.unittest import TestCase

from mqhooks.outbox.memory import MemoryOutbox
from tests.contract.outbox import OutboxContract

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "custom_outbox.tac"


def encrypted_outbox():
    """The class, out of the example's text: running all of it would start a bridge."""
    definitions = re.split(r"^# Instead of ", EXAMPLE.read_text(), flags=re.M)[0]
    namespace = {}
    exec(compile(definitions, str(EXAMPLE), "exec"), namespace)
    return namespace["EncryptedOutbox"]


class EncryptedOutboxTests(OutboxContract, TestCase):
    max_size = 100_000

    def open(self):
        self.inner = MemoryOutbox(max_size=self.max_size)
        return encrypted_outbox()(self.inner, Fernet.generate_key())
