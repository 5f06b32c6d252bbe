"""
Every exception that mqhooks raises for others to catch.

Each message is one line that a person can act on: what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class MqhooksError(Exception):
    """The root of the tree."""


class ConfigError(MqhooksError):
    """
    A setting is missing or wrong.

    :param message: what is wrong and what to do about it.
    :param where: the file, option or string that holds the setting.
    :param key: the setting's path within it, for example ``webhook.events[0].topic``.
    :param place: file and line of the setting, like ``nanomq.conf:12``, if they are known; perhaps of an included file.
    """

    def __init__(self, message: str, where: str = "", key: str = "", place: str = "") -> None:
        super().__init__(": ".join(part for part in (where, key, message) if part))
        self.message = message
        self.where = where
        self.key = key
        self.place = place

    @property
    def told(self) -> str:
        """The line for the person who has to fix it: the message with the place."""
        return ": ".join(part for part in (self.place or self.where, self.key, self.message) if part)

    @property
    def mistakes(self) -> tuple[ConfigError, ...]:
        """The mistakes, one by one."""
        return (self,)


class ConfigErrors(ConfigError):
    """
    Several settings are missing or wrong. The message is one line about the first.

    :param mistakes: what is wrong with each.
    """

    def __init__(self, mistakes: Sequence[ConfigError]) -> None:
        super().__init__(f"{mistakes[0]} (the first of {len(mistakes)} mistakes)")
        self._mistakes = tuple(mistakes)

    @property
    def mistakes(self) -> tuple[ConfigError, ...]:
        """The mistakes, one by one."""
        return self._mistakes


def together(mistakes: Iterable[ConfigError]) -> ConfigError:
    """Combine one or more errors into one, leaving out duplicates."""
    different = list({str(mistake): mistake for each in mistakes for mistake in each.mistakes}.values())
    return different[0] if len(different) == 1 else ConfigErrors(different)


class NoAnswer(MqhooksError):
    """
    A running bridge gives no verdict: it cannot be reached, does not let us in, or is another program.

    :cvar status: the exit status of a command that needed a verdict.
    """

    status = 2


class Remark(str):
    """
    A line about a setting that is odd but not wrong.

    :param error: the text, and the place that it is about.
    :ivar told: the line with the place, see :attr:`ConfigError.told`.
    """

    told: str

    def __new__(cls, error: ConfigError) -> Remark:
        """Make a remark with an error's text and place."""
        made = super().__new__(cls, error)
        made.told = error.told
        return made


def told(what: object) -> str:
    """Format an error or a remark as a line, with the place if it is known."""
    return str(getattr(what, "told", what))


class ListenError(MqhooksError):
    """An address cannot be listened on."""


class OutboxError(MqhooksError):
    """The outbox's file cannot be used."""


class OutboxUnavailable(OutboxError):
    """The outbox cannot be read or written now; that may pass."""


class OutboxNoRoom(OutboxUnavailable):
    """The outbox cannot be written because the disk is full, or may be."""


class OutboxDamaged(OutboxError):
    """The outbox's content is not what was written."""


class Unstorable(OutboxError):
    """Something can never be stored, whatever the state of the file."""


class DecodeError(MqhooksError):
    """A frame does not hold an event that we know."""


class MalformedFrame(DecodeError):
    """The frame is not a protobuf ``Any``, or its value is not the message that it names."""


class MalformedBody(DecodeError):
    """A request's body is not what its hook sends."""


class UnknownType(DecodeError):
    """
    The frame holds a message of a type that we don't know.

    :param name: the type's name as the frame gives it, shortened to 128 characters.
    """

    def __init__(self, name: str) -> None:
        self.name = name[:128]
        super().__init__(f"no hook sends messages of type {self.name!r}")


class BadSignature(MqhooksError):
    """A request's signature is missing or wrong."""


class DeliveryError(MqhooksError):
    """An attempt got no answer, so nobody knows what the endpoint did with the request."""


class ConnectFailed(DeliveryError):
    """No connection to the endpoint: it got no byte of the request."""


class NotAuthenticated(ConnectFailed):
    """Credentials are missing, so nothing was sent."""


class ConnectionBroken(DeliveryError):
    """The connection ended before the answer was complete."""


class DeliveryTimeout(DeliveryError):
    """The endpoint did not answer within ``cancel_timeout``."""


class BadAnswer(DeliveryError):
    """The endpoint answered with something that is not HTTP, or with far too much of it."""


class NATSError(MqhooksError):
    """NATS cannot do what it was asked, or cannot be reached."""


class NATSUnavailable(NATSError):
    """There is no connection to a server: nothing was sent."""


class NATSMalformed(NATSUnavailable):
    """A server sends something other than NATS's protocol."""


class NATSRefused(NATSUnavailable):
    """A server does not let us in or does not let us do what we want: credentials, permissions, limits."""


class NATSFull(NATSUnavailable):
    """The server reads too slowly: too much waits to be sent already, so this message was not queued."""


class NATSTooLong(NATSError):
    """The message is longer than the server allows: nothing was sent."""


class NATSNoResponders(NATSError):
    """Nobody listens on the subject, so nobody received the request."""


class NATSUnknownOutcome(NATSError):
    """A request was sent and has no answer: nobody knows whether it was carried out."""


class NATSTimeout(NATSUnknownOutcome):
    """No answer came in time."""


class NATSDisconnected(NATSUnknownOutcome):
    """The connection ended before the answer came."""


class JetStreamError(NATSError):
    """
    JetStream refuses a request.

    :param what: the request, for example ``STREAM.CREATE.orders``.
    :param code: like an HTTP status: 404, or 503 while there is no leader.
    :param err_code: JetStream's own error number; 0 if the server doesn't give one.
    :param description: JetStream's words.
    """

    def __init__(self, what: str, code: int, err_code: int, description: str) -> None:
        super().__init__(f"JetStream refuses {what}: {description} ({code}, error {err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description
