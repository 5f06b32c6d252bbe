"""
JetStream's requests: streams, publishing with an acknowledgement, reading by sequence number. There are no consumers.

- Answers of a stream's leader are current; a direct get asks any of its replicas, which may be behind.
- A batch that has a gap, or stops, is cut off there: the messages before are right, and the rest can be asked for.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.python.failure import Failure

from mqhooks.errors import JetStreamError, NATSMalformed, NATSNoResponders, NATSTimeout
from mqhooks.nats.client import TIMEOUT, NATSClient
from mqhooks.nats.message import NATSMessage
from mqhooks.support.printable import printable

MESSAGE_ID = "Nats-Msg-Id"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
ROLLUP = "Nats-Rollup"

WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""Error codes of a publish that expected another last sequence number."""

NO_STREAM = 10059
"""Error code for a stream that doesn't exist."""

NO_MESSAGE = 10037
"""Error code for a message that doesn't exist."""

MAX_BATCH = 4 << 20
"""Default size limit of a batch, in bytes."""

_NAME = re.compile(r"[^\s\x00-\x20.*>/\\]{1,255}")

_T = TypeVar("_T")


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True):
    """
    The acknowledgement of a message: a quorum of the stream's replicas has it.

    :param stream: the stream.
    :param seq: the message's sequence number in it.
    :param duplicate: whether the stream had it already, under the same id.
    """

    stream: str
    seq: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Stored:
    """
    A message of a stream.

    :param subject: the subject that it was published to.
    :param sequence: its sequence number.
    :param time: the time when it was stored, by RFC 3339, in UTC.
    :param headers: its headers.
    :param payload: its content.
    """

    subject: str
    sequence: int
    time: str
    headers: Mapping[str, str]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """
    The result of a direct get of several messages.

    :param messages: in the order of their sequence numbers.
    :param pending: number of further messages, as far as the server has reported it.
    """

    messages: list[Stored]
    pending: int


class JetStream:
    """
    JetStream over a client. Every method returns a ``Deferred``, which fails like that of
    :meth:`~mqhooks.nats.client.NATSClient.request`, and with :class:`~mqhooks.errors.JetStreamError` when JetStream
    refuses. An invalid name of a stream raises ``ValueError``.

    :param client: connected or not.
    :param timeout: seconds that a request waits for its answer.
    :param prefix: ``$JS.<domain>.API`` for a domain, or the subject under which an account imports the API.
    """

    def __init__(self, client: NATSClient, *, timeout: float = TIMEOUT, prefix: str = "$JS.API") -> None:
        self._client = client
        self._timeout = timeout
        self._prefix = prefix

    # Streams

    def account_info(self) -> Deferred[dict[str, Any]]:
        """Ask for the account's use and limits: ``storage``, ``limits.max_storage`` and so on; -1 means no limit."""
        return self.call("INFO")

    def create_stream(self, config: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        """
        Create a stream; do nothing if it exists with this configuration.

        :param config: JetStream's configuration: ``name``, ``subjects``, ``num_replicas`` …
        :returns: the same as ``stream_info``.
        """
        return self.call(f"STREAM.CREATE.{_checked(config.get('name', ''))}", config)

    def update_stream(self, config: Mapping[str, Any]) -> Deferred[dict[str, Any]]:
        """Change a stream; the configuration has to be complete."""
        return self.call(f"STREAM.UPDATE.{_checked(config.get('name', ''))}", config)

    def stream_info(self, stream: str) -> Deferred[dict[str, Any]]:
        """Ask a stream's leader for ``config``, ``state`` and ``cluster``."""
        return self.call(f"STREAM.INFO.{_checked(stream)}")

    def delete_stream(self, stream: str) -> Deferred[None]:
        """Delete a stream with its messages."""
        return self.call(f"STREAM.DELETE.{_checked(stream)}").addCallback(lambda _: None)

    def stream_names(self, subject: str | None = None) -> Deferred[list[str]]:
        """
        List streams.

        :param subject: only streams whose subjects overlap this one.
        """
        return ensureDeferred(self._names(subject))

    async def _names(self, subject: str | None) -> list[str]:
        names: list[str] = []
        while True:
            asked = {"offset": len(names), **({} if subject is None else {"subject": subject})}
            answer = await self.call("STREAM.NAMES", asked)
            page = _convert(answer.get("streams") or [], "STREAM.NAMES", list[str])
            total = _convert(answer.get("total"), "STREAM.NAMES", int)
            names += page
            if not page or len(names) >= total:
                return names

    def purge(
        self, stream: str, *, subject: str | None = None, below: int | None = None, keep: int | None = None
    ) -> Deferred[int]:
        """
        Delete messages.

        :param subject: only messages of this subject, which may have wildcards.
        :param below: only messages with a lower sequence number. It excludes ``keep``.
        :param keep: number of last messages to keep.
        :returns: the number of deleted messages.
        """
        asked = {"filter": subject, "seq": below, "keep": keep}
        request = f"STREAM.PURGE.{_checked(stream)}"
        done = self.call(request, {key: value for key, value in asked.items() if value is not None})
        return done.addCallback(lambda answer: _convert(answer.get("purged"), request, int))

    # Messages

    def publish(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        message_id: str | None = None,
        expected_last: int | None = None,
        rollup: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Deferred[Ack]:
        """
        Store a message.

        :param message_id: its idempotency key: a message whose id the stream has seen within its ``duplicate_window`` is not
            stored again.
        :param expected_last: store it only if the last message of this subject has this sequence number, 0 for no message;
            otherwise the error's ``err_code`` is in :data:`WRONG_LAST_SEQUENCE`.
        :param rollup: ``sub`` to delete all other messages of the subject, ``all`` to delete all others of the stream.
        :param headers: further headers.
        :param timeout: replaces this object's timeout.
        """
        also = {MESSAGE_ID: message_id, EXPECTED_LAST_SUBJECT_SEQUENCE: expected_last, ROLLUP: rollup}
        given = {**(headers or {}), **{name: str(value) for name, value in also.items() if value is not None}}
        wait = self._timeout if timeout is None else timeout
        done = self._client.request(subject, payload, headers=given, timeout=wait)
        request = f"to store a message of {subject}"
        return done.addErrback(_explain, request).addCallback(_answered, request).addCallback(_convert, request, Ack)

    def get(self, stream: str, sequence: int, *, subject: str | None = None) -> Deferred[Stored | None]:
        """
        Read a message from the leader.

        :param sequence: its sequence number.
        :param subject: read the first message of this subject from that number on. It may have wildcards.
        :returns: ``None`` if there is no such message.
        """
        return self._get(stream, {"seq": sequence, **({} if subject is None else {"next_by_subj": subject})})

    def last(self, stream: str, subject: str) -> Deferred[Stored | None]:
        """
        Read the last message of a subject from the leader; ``None`` if there is none. After ``delete_message`` of the last one,
        servers before 2.12.6 also find none, although there are others.
        """
        return self._get(stream, {"last_by_subj": subject})

    def delete_message(self, stream: str, sequence: int, *, erase: bool = False) -> Deferred[None]:
        """
        Delete a message.

        :param erase: overwrite its content, too.
        """
        done = self.call(f"STREAM.MSG.DELETE.{_checked(stream)}", {"seq": sequence, "no_erase": not erase})
        return done.addCallback(lambda _: None)

    def direct(self, stream: str, sequence: int, *, subject: str | None = None) -> Deferred[Stored | None]:
        """Read a message from any replica; otherwise as ``get``. The stream needs ``allow_direct``."""
        wanted = {"seq": sequence, **({} if subject is None else {"next_by_subj": subject})}
        return self._direct(stream, wanted, self._timeout).addCallback(_only)

    def direct_last(self, stream: str, subject: str) -> Deferred[Stored | None]:
        """Read the last message of a subject from any replica."""
        return self._direct(stream, {"last_by_subj": subject}, self._timeout).addCallback(_only)

    def direct_batch(
        self,
        stream: str,
        sequence: int,
        subject: str,
        *,
        limit: int = 256,
        max_bytes: int = MAX_BATCH,
        timeout: float | None = None,
    ) -> Deferred[Batch]:
        """
        Read messages from any replica.

        :param sequence: the first sequence number.
        :param subject: only messages of this subject, which may have wildcards.
        :param limit: maximum number of messages.
        :param max_bytes: maximum size in bytes; at least one message comes.
        :param timeout: seconds that the next message may take; replaces this object's timeout.
        """
        wanted = {"seq": sequence, "next_by_subj": subject, "batch": limit, "max_bytes": max_bytes}
        return self._direct(stream, wanted, self._timeout if timeout is None else timeout, batch=True)

    def direct_lasts(
        self, stream: str, subjects: Sequence[str], *, limit: int = 256, max_bytes: int = MAX_BATCH
    ) -> Deferred[Batch]:
        """Read the last message of each of several subjects, which may have wildcards, from any replica."""
        wanted = {"multi_last": list(subjects), "batch": limit, "max_bytes": max_bytes}
        return self._direct(stream, wanted, self._timeout, batch=True)

    def call(
        self, request: str, body: Mapping[str, Any] | None = None, timeout: float | None = None
    ) -> Deferred[dict[str, Any]]:
        """
        Make any other request of JetStream's API.

        :param request: the subject after the prefix, for example ``STREAM.LEADER.STEPDOWN.orders``.
        :param body: sent as JSON.
        :param timeout: replaces this object's timeout.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        wait = self._timeout if timeout is None else timeout
        done = self._client.request(f"{self._prefix}.{request}", payload, timeout=wait)
        return done.addErrback(_explain, request).addCallback(_answered, request)

    def _get(self, stream: str, wanted: Mapping[str, Any]) -> Deferred[Stored | None]:
        request = f"STREAM.MSG.GET.{_checked(stream)}"

        def found(answer: dict[str, Any]) -> Stored:
            message = _convert(answer.get("message"), request, _Message)
            try:
                block, payload = b64decode(message.hdrs), b64decode(message.data)
            except ValueError as error:
                raise _unreadable(request, error) from None
            return Stored(message.subject, message.seq, message.time, NATSMessage(b"", b"", block, b"").headers, payload)

        def missing(failure: Failure) -> Failure | None:
            error = failure.value
            return None if isinstance(error, JetStreamError) and error.err_code == NO_MESSAGE else failure

        return self.call(request, wanted).addCallbacks(found, missing)

    def _direct(self, stream: str, wanted: Mapping[str, Any], timeout: float, *, batch: bool = False) -> Deferred[Batch]:
        request = f"DIRECT.GET.{_checked(stream)}"
        messages: list[Stored] = []
        pending = 0

        def receive(message: NATSMessage) -> bool:
            nonlocal pending
            headers, status = message.headers, message.status
            if status == 404:
                return True
            try:
                pending = int(headers.get("Nats-Num-Pending", 0))
                if status == 204:
                    return True
                if status:
                    raise JetStreamError(request, status, 0, printable(message.description, 200))
                before = headers.get("Nats-Last-Sequence")
                if batch and before is not None and int(before) != (messages[-1].sequence if messages else 0):
                    # A message before this one was lost when a route between servers broke. The caller can ask for it again.
                    return True
                stored = Stored(
                    headers["Nats-Subject"],
                    int(headers["Nats-Sequence"]),
                    headers["Nats-Time-Stamp"],
                    headers,
                    message.payload,
                )
            except (KeyError, ValueError) as error:
                raise _unreadable(request, error) from None
            messages.append(stored)
            return not batch

        def stopped(failure: Failure) -> Failure | None:
            return None if messages and failure.check(NATSTimeout) else _explain(failure, request)

        done = self._client.request_many(f"{self._prefix}.{request}", msgspec.json.encode(wanted), receive, timeout=timeout)
        return done.addErrback(stopped).addCallback(lambda _: Batch(messages, pending))


class _Message(msgspec.Struct, frozen=True):
    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


def _checked(stream: str) -> str:
    if _NAME.fullmatch(stream) is None:
        raise ValueError(f"not a stream name: {stream[:80]!r}")
    return stream


def _answered(message: NATSMessage, request: str) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(message.payload, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _unreadable(request, error) from None
    if answer.get("error") is not None:
        told = _convert(answer["error"], request, _Error)
        raise JetStreamError(request, told.code, told.err_code, printable(told.description, 300))
    return answer


def _explain(failure: Failure, request: str) -> Failure:
    if failure.check(NATSNoResponders):
        why = "the stream does not exist or has no leader just now, or JetStream is off"
        return Failure(NATSNoResponders(f"nobody answers {request}: {why}"))
    return failure


def _convert(value: Any, request: str, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise _unreadable(request, error) from None


def _unreadable(request: str, error: Exception) -> NATSMalformed:
    return NATSMalformed(f"JetStream's answer to {request} cannot be read: {printable(str(error), 200)}")


def _only(batch: Batch) -> Stored | None:
    return batch.messages[0] if batch.messages else None
