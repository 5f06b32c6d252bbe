"""Lets twistd find the simulator."""

from twisted.application.service import ServiceMaker

simulate = ServiceMaker(
    "mqhooks-simulate",
    "mqhooks.tools.simulator",
    "Stand in for VerneMQ: send made-up clients' events as its events sidecar does.",
    "mqhooks-simulate",
)
