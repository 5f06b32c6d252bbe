"""Lets twistd find the receiver."""

from twisted.application.service import ServiceMaker

receive = ServiceMaker(
    "mqhooks-receive",
    "mqhooks.tools.receiver",
    "Receive webhooks: print them, or misbehave.",
    "mqhooks-receive",
)
