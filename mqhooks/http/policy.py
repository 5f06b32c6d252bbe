"""
TLS for Twisted's agent: see :mod:`mqhooks.support.verifying`.
"""

from __future__ import annotations

from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.web.iweb import IPolicyForHTTPS
from zope.interface import implementer

from mqhooks.support.verifying import Verifier


@implementer(IPolicyForHTTPS)
class VerifyingPolicy(Verifier):
    """Makes TLS connections for an agent; they refuse the same certificates as the pooled transport."""

    def creatorForNetloc(self, hostname: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """See :class:`twisted.web.iweb.IPolicyForHTTPS`."""
        return self.creator(hostname.decode("ascii").strip("[]"), port)
