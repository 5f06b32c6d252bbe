"""
TLS for Twisted's transports that refuses the same certificates as the pooled transport.

- Twisted's own check fails open: it catches one class of service_identity's errors and accepts the certificate on all others,
  so a certificate that names no host passes. Here only a positive match passes.
- Anything else is refused during the handshake, before any data of ours is sent.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from OpenSSL import SSL, crypto
from service_identity.cryptography import verify_certificate_hostname, verify_certificate_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, CertificateOptions, TLSVersion, platformTrust, trustRootFromCertificates
from zope.interface import implementer

from mqhooks.support.files import read_bounded
from mqhooks.support.tls import (
    TLSSettings,
    certificate_problem,
    client_context,
    handshake_problem,
    is_handshake_problem,
    read_certificates,
)

_WRONG_NAME = 62


class Verifier:
    """
    Makes TLS connections to one server, and remembers what went wrong with its certificate.

    :param settings: ``None`` for the system's authorities and no client certificate.
    :param plain: the scheme of the same protocol without TLS, for messages.
    :raises mqhooks.errors.ConfigError: when a file cannot be read or is not what it should be.
    """

    def __init__(self, settings: TLSSettings | None, plain: str = "http") -> None:
        self._options = _options(settings or TLSSettings())
        self._options.getContext().set_info_callback(self._happened)
        self._plain = plain
        self._problem = ""
        self._begun = self._done = False

    def creator(self, host: str, port: int) -> IOpenSSLClientConnectionCreator:
        """Return the wrapper for connections to a host; the certificate has to name that host."""
        return _Creator(self, self._options.getContext(), host, port)

    @property
    def unanswered(self) -> bool:
        """Whether a handshake has begun and none was ever completed: the endpoint has received nothing."""
        return self._begun and not self._done

    def begin(self) -> None:
        """Note that a handshake begins."""
        self._begun = True

    def _happened(self, connection: SSL.Connection, where: int, value: int) -> None:
        self._done = self._done or bool(where & SSL.SSL_CB_HANDSHAKE_DONE)

    def note(self, problem: str) -> None:
        """Remember why a certificate was refused."""
        self._problem = problem

    def explain(self, error: SSL.Error, host: str, port: int) -> tuple[str, bool]:
        """
        Explain why a TLS connection failed, and say whether that proves that the endpoint received nothing.

        :param error: pyOpenSSL's error.
        """
        entries = error.args[0] if error.args and isinstance(error.args[0], list) else []
        reasons = [str(entry[-1]) for entry in entries] or ["it ended too early"]
        if self._problem and "certificate verify failed" in reasons:
            return self._problem, True
        return handshake_problem(reasons[0], host, port, self._plain), is_handshake_problem(reasons[0])


@implementer(IOpenSSLClientConnectionCreator)
class _Creator:
    def __init__(self, verifier: Verifier, context: SSL.Context, host: str, port: int) -> None:
        self._verifier = verifier
        self._context = context
        self._host = host.rstrip(".")
        self._port = port

    def clientConnectionForTLS(self, tlsProtocol: object) -> SSL.Connection:
        self._verifier.begin()
        connection = SSL.Connection(self._context, None)
        if not is_address(self._host):
            connection.set_tlsext_host_name(self._host.encode("ascii"))
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, self._verify)
        return connection

    def _verify(self, connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, sound: int) -> bool:
        # Never raise here: the library would decide what happens then.
        if not sound:
            self._verifier.note(certificate_problem(code, f"OpenSSL's error {code}", self._host, self._port))
            return False
        if depth == 0 and not matches_host(certificate, self._host):
            self._verifier.note(certificate_problem(_WRONG_NAME, "", self._host, self._port))
            return False
        return True


def matches_host(certificate: crypto.X509, host: str) -> bool:
    """Return whether a certificate is for a host. Anything but a positive match counts as a mismatch."""
    try:
        if is_address(host):
            verify_certificate_ip_address(certificate.to_cryptography(), host)
        else:
            verify_certificate_hostname(certificate.to_cryptography(), host)
    except Exception:
        return False
    return True


def is_address(host: str) -> bool:
    """Return whether a host is given as an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _options(settings: TLSSettings) -> CertificateOptions:
    # Called only for its errors: it reports every mistake in the files.
    client_context(settings)
    trust_root: Any = platformTrust()
    if settings.cacertfile is not None:
        found = read_certificates(settings, "cacertfile", settings.cacertfile)
        trust_root = trustRootFromCertificates([Certificate.loadPEM(pem) for pem in found])
    ours: dict[str, Any] = {}
    if settings.certfile is not None and settings.keyfile is not None:
        certificate, *chain = (
            crypto.load_certificate(crypto.FILETYPE_PEM, pem)
            for pem in read_certificates(settings, "certfile", settings.certfile)
        )
        password = (settings.key_password or "").encode()
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, read_bounded(settings.keyfile), password)
        ours = {"certificate": certificate, "privateKey": key, "extraCertChain": chain}
    return CertificateOptions(trustRoot=trust_root, raiseMinimumTo=TLSVersion.TLSv1_2, **ours)
