"""
A webhook endpoint that prints what it receives, and misbehaves on request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, BinaryIO

from twisted.application.service import IService, Service
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.interfaces import IListeningPort, IReactorTime
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.web.http import NO_BODY_CODES, UNAUTHORIZED
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from mqhooks.errors import BadSignature, ConfigError
from mqhooks.support.closing import ClosingFactory
from mqhooks.support.listening import Listener, address_name, stop_listening
from mqhooks.support.loops import Loop
from mqhooks.support.options import CommandOptions, duration, share, whole
from mqhooks.support.output import closed, occupy
from mqhooks.support.services import OrderedService
from mqhooks.support.signatures import check_verifying, verify
from mqhooks.tools.tally import Received, Tally


@dataclass(frozen=True, slots=True)
class Behaviour:
    """
    Settings that decide how requests are answered.

    :param status: the status of a normal answer.
    :param fail: the share of requests answered with ``fail_status``, from 0 to 1.
    :param fail_status: the status of these answers.
    :param drop: the share of requests answered by closing the connection; ``fail`` and ``drop`` are at most 1 together.
    :param delay: seconds from a request to its answer.
    :param secrets: ``whsec_…`` or ``whpk_…``; if there are any, a request not signed with one of them is answered with 401.
    """

    status: int = 200
    fail: float = 0.0
    fail_status: int = 500
    drop: float = 0.0
    delay: float = 0.0
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def answer(self, luck: float) -> int | None:
        """
        Choose an answer.

        :param luck: a random number from 0 to below 1.
        :returns: the status; ``None`` to close the connection.
        """
        if luck < self.drop:
            return None
        return self.fail_status if luck < self.drop + self.fail else self.status


class ReceiverFactory(ClosingFactory):
    """
    Makes persistent HTTP/1.1 connections, and counts them.

    :param clock: for timeouts.
    :param site: answers the requests.
    :param tally: counts the connections.
    """

    def __init__(self, clock: IReactorTime, site: Site, tally: Tally) -> None:
        super().__init__(clock, site)
        self._tally = tally

    def registerProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Count a new connection."""
        super().registerProtocol(p)
        self._tally.connected()

    def unregisterProtocol(self, p: ProtocolWrapper) -> None:  # noqa: N802
        """Count a connection that has ended."""
        self._tally.disconnected()
        super().unregisterProtocol(p)


def receiver_site(
    clock: IReactorTime,
    behaviour: Behaviour | None = None,
    *,
    random: Random | None = None,
    tally: Tally | None = None,
    show: Callable[[Received], object] | None = None,
) -> tuple[ReceiverFactory, Tally]:
    """
    Make the factory of an endpoint that accepts every method and every path.

    :param clock: for delays and timeouts.
    :param behaviour: decides how requests are answered; with 200 by default.
    :param random: decides which requests fail.
    :param tally: counts requests; by default one that keeps them all.
    :param show: called with each request.
    :returns: the factory and the tally.
    """
    if tally is None:
        tally = Tally(keep=None, remember=None)
    endpoint = _Answers(clock, behaviour or Behaviour(), random or Random(), tally, show or (lambda _: None))
    return ReceiverFactory(clock, _ReceiverSite(endpoint, reactor=clock), tally), tally


class _ReceiverSite(Site):
    noisy = False

    def log(self, request: Any) -> None:
        """Log no requests: the receiver prints them."""


class _Answers(Resource):
    isLeaf = True

    def __init__(
        self,
        clock: IReactorTime,
        behaviour: Behaviour,
        random: Random,
        tally: Tally,
        show: Callable[[Received], object],
    ) -> None:
        super().__init__()
        self._clock = clock
        self._behaviour = behaviour
        self._random = random
        self._tally = tally
        self._show = show

    def render(self, request: Request) -> int:
        """Answer a request, now or after the delay."""
        now = self._clock.seconds()
        headers = tuple(
            (name.decode("latin-1"), value.decode("utf-8", "backslashreplace"))
            for name, values in request.requestHeaders.getAllRawHeaders()
            for value in values
        )
        body = request.content.read() if request.content is not None else b""
        status = self._behaviour.answer(self._random.random())
        problem = self._problem(headers, body, now)
        received = Received(
            time=now,
            method=request.method.decode("latin-1"),
            path=request.uri.decode("latin-1"),
            headers=headers,
            body=body,
            status=status if problem is None else UNAUTHORIZED,
            problem=problem,
        )
        self._tally.arrived(received)
        self._show(received)
        if self._behaviour.delay:
            waiting = self._clock.callLater(self._behaviour.delay, self._answer, request, received)
            request.notifyFinish().addErrback(self._abandon, waiting)
        else:
            self._answer(request, received)
        return NOT_DONE_YET

    def _problem(self, headers: tuple[tuple[str, str], ...], body: bytes, now: float) -> str | None:
        if not self._behaviour.secrets:
            return None
        try:
            verify(self._behaviour.secrets, headers, body, now)
        except BadSignature as error:
            return str(error)
        return None

    def _answer(self, request: Request, received: Received) -> None:
        self._tally.answered(received)
        if received.status is None:
            request.loseConnection()
            return
        request.setResponseCode(received.status)
        if received.status not in NO_BODY_CODES:
            request.setHeader(b"content-length", b"0")
        request.finish()

    def _abandon(self, _: Failure, waiting: Any) -> None:
        if waiting.active():
            waiting.cancel()
            self._tally.abandoned += 1


class Console:
    """
    Writes lines in UTF-8 for people to read.

    :param stream: each line is written to it synchronously.
    :param when_closed: called once, when the reader of the stream has gone, or the stream cannot be written for another reason.
    :param complain: called with that reason, as a line, before.
    """

    def __init__(
        self, stream: BinaryIO, when_closed: Callable[[], object], complain: Callable[[str], object] = lambda _: None
    ) -> None:
        self._stream = stream
        self._when_closed = when_closed
        self._complain = complain
        self._closed = False

    def write(self, line: str) -> None:
        """Write a line."""
        if self._closed:
            return
        try:
            self._stream.write(line.encode("utf-8", "backslashreplace") + b"\n")
            self._stream.flush()
        except OSError as error:
            self._closed = True
            if not isinstance(error, BrokenPipeError):
                self._complain(f"mqhooks: standard output cannot be written: {error.strerror}")
            self._when_closed()


class ReceiverService(Service):
    """
    Listens, and writes its tally when it stops.

    :param reactor: listens and tells the time.
    :param description: for Twisted's ``serverFromString``, completed by :func:`mqhooks.support.listening.complete`.
    :param factory: makes the connections.
    :param tally: counts the requests.
    :param write: writes a line.
    :param quiet: whether to write the tally every second, if it has changed.
    :raises mqhooks.errors.ConfigError: when the description is wrong.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        description: str,
        factory: ReceiverFactory,
        tally: Tally,
        write: Callable[[str], object],
        *,
        quiet: bool = False,
    ) -> None:
        self._listener = Listener(reactor, description)
        self._factory = factory
        self._tally = tally
        self._write = write
        self._quiet = quiet
        self._told = 0
        self._summaries = Loop(reactor, "writing the tally", self._summarise)
        self._port: IListeningPort | None = None

    @property
    def address(self) -> Any:
        """The address that it listens on, as Twisted's address object."""
        assert self._port is not None
        return self._port.getHost()

    def privilegedStartService(self) -> None:
        """
        Listen.

        :raises mqhooks.errors.ListenError: when the address is taken or not allowed.
        """
        self._port = self._listener.listen(self._factory)
        self.log.info("listening for webhooks on {address}", address=address_name(self._port.getHost()))

    def startService(self) -> None:
        """Listen, unless :meth:`privilegedStartService` already does."""
        super().startService()
        if self._port is None:
            self.privilegedStartService()
        if self._quiet:
            self._summaries.start(1.0)

    @inlineCallbacks
    def stopService(self) -> Generator[Deferred[Any], Any, None]:
        """
        Stop listening, close all connections and write the tally.

        :returns: a ``Deferred`` that fires when all are closed.
        """
        super().stopService()
        self._summaries.stop()
        port, self._port = self._port, None
        if port is not None:
            yield stop_listening(port)
        yield self._factory.close()
        self._write(self._tally.describe())

    def _summarise(self) -> None:
        if self._tally.requests != self._told:
            self._told = self._tally.requests
            self._write(self._tally.describe())


def _status(option: str) -> Callable[[str], int]:
    return whole(option, 200, 599)


def _failures(text: str) -> tuple[float, int]:
    part, colon, status = text.partition(":")
    return share("--fail")(part), _status("--fail")(status) if colon else 500


def _secret(text: str) -> str:
    try:
        check_verifying(text)
    except ConfigError as error:
        raise UsageError(f"--secret: {error.message}") from None
    return text


class Options(CommandOptions):
    """The options of ``twistd mqhooks-receive``."""

    synopsis = "[options]"
    longdesc = "Receives webhooks and prints each on a line of standard output: run it with twistd -n."
    optParameters = [
        ["listen", None, None, "Where to listen: a Twisted server endpoint. [default: tcp:8080:interface=127.0.0.1]"],
        ["port", None, None, "A port of 127.0.0.1 to listen on; 0 for any free one.", whole("--port", 0, 65_535)],
        ["status", None, 200, "The status that requests are answered with.", _status("--status")],
        ["fail", None, None, "The share of requests answered with 500, like 10%; 10%:503 for another status.", _failures],
        ["delay", None, None, "The delay of each answer: 50ms, 1s, or a number of ms.", duration("--delay")],
        ["drop", None, None, "The share of requests answered by closing the connection, like 1%.", share("--drop")],
        [
            "secret",
            None,
            None,
            "A secret, or the public key of a private one: requests not signed with it are answered with 401.",
            _secret,
        ],
        ["seed", None, None, "Any text; the same text makes the same requests fail."],
    ]
    optFlags = [
        ["quiet", "q", "Print the counts, at most once a second, instead of each request."],
        ["verbose", "v", "Print each request's headers too."],
    ]

    def postOptions(self) -> None:
        """
        Check the options against each other.

        :raises UsageError: when options contradict each other.
        """
        if self["listen"] is not None and self["port"] is not None:
            raise UsageError("--listen and --port both say where to listen; give one of them")
        self["fail"] = self["fail"] or (0.0, 500)
        self["drop"] = self["drop"] or 0.0
        if self["fail"][0] + self["drop"] > 1:
            raise UsageError("--fail and --drop add up to more than 100%")
        if self["quiet"] and self["verbose"]:
            raise UsageError("--quiet and --verbose contradict each other; give one of them")


def makeService(options: Options) -> IService:
    """
    Make the receiver that the options describe. It writes to standard output itself: twistd's log would spoil the lines.

    :raises SystemExit: when the address is not an endpoint.
    """
    occupy()
    from twisted.internet import reactor

    stdout = open(os.devnull if closed() else 1, "wb", closefd=closed())  # noqa: SIM115
    try:
        return OrderedService([from_options(reactor, options, stdout, _complain)], program="mqhooks-receive")
    except ConfigError as error:
        raise SystemExit(f"mqhooks-receive: {error}") from None


def _complain(line: str) -> None:
    # twistd's log goes to standard output too.
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


def from_options(
    reactor: Any, options: Options, stream: BinaryIO, complain: Callable[[str], object] = lambda _: None
) -> ReceiverService:
    """
    Make the receiver that the options describe.

    :param reactor: listens, tells the time, and is stopped when the reader of the stream has gone.
    :param stream: gets the lines about requests and counts.
    :param complain: called with a line when the stream cannot be written.
    :raises mqhooks.errors.ConfigError: when the address is not an endpoint.
    """
    description = options["listen"] or f"tcp:{8080 if options['port'] is None else options['port']}:interface=127.0.0.1"
    fail, fail_status = options["fail"]
    secrets = () if options["secret"] is None else (options["secret"],)
    behaviour = Behaviour(options["status"], fail, fail_status, options["drop"], options["delay"] or 0.0, secrets)
    console = Console(stream, lambda: reactor.stop() if receiver.running else None, complain)

    def show(received: Received) -> None:
        console.write(received.describe(headers=options["verbose"]))

    factory, tally = receiver_site(
        reactor,
        behaviour,
        random=Random(options["seed"]),
        tally=Tally(),
        show=None if options["quiet"] else show,
    )
    receiver = ReceiverService(reactor, description, factory, tally, console.write, quiet=options["quiet"])
    return receiver
