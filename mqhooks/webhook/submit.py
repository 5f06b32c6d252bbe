"""
Submit requests to a transport of either kind: one that calls back, or one that only returns a ``Deferred``.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from mqhooks.delivery import Request, Response
from mqhooks.errors import ConnectionBroken, DeliveryError
from mqhooks.interfaces import ICallbackTransport, IWebhookTransport
from mqhooks.support.names import in_words

Done = Callable[[Response | DeliveryError], object]

Submit = Callable[[Request, Done], object]


def submitter(transport: IWebhookTransport, name: str, url: str, log: Logger) -> Submit:
    """
    Return the function that submits requests to a transport; see :meth:`mqhooks.interfaces.ICallbackTransport.submit`.

    :param name: the webhook's name, for the log.
    :param url: the webhook's URL, for messages.
    """
    if ICallbackTransport.providedBy(transport):
        submit: Submit = transport.submit
        return submit
    return careful_submitter(transport, name, url, log)


def careful_submitter(transport: IWebhookTransport, name: str, url: str, log: Logger) -> Submit:
    """
    Return a function like that of :func:`submitter`, for any transport: what the transport raises is a result, too.

    :param name: the webhook's name, for the log.
    :param url: the webhook's URL, for messages.
    """

    def explain(failure: Failure) -> DeliveryError:
        error = failure.value
        if isinstance(error, DeliveryError):
            return error
        log.failure("webhook {name}: an attempt failed in an unexpected way", failure, name=name)
        return ConnectionBroken(f"{url}: {in_words(error)}")

    def wait_for(request: Request, done: Done) -> None:
        maybeDeferred(transport.send, request).addErrback(explain).addCallback(done)

    return wait_for
