"""
Whom an ``https`` endpoint has to be, and who we are to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from OpenSSL import SSL, crypto
from service_identity.hazmat import DNS_ID, IPAddress_ID, ServiceID, verify_service_identity
from service_identity.pyopenssl import extract_patterns
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mqhooks.errors import CertificateRefused, ConfigError
from mqhooks.webhook.settings import TLSSettings

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def tls_options(host: str, settings: TLSSettings | None) -> IOpenSSLClientConnectionCreator:
    """
    Make what a TLS connection to a host needs. The host's name is always verified.

    :param host: a DNS name or an IP address.
    :param settings: ``None`` for the system's authorities and no client certificate.
    :raises mqhooks.errors.ConfigError: when a file cannot be read or is not what it should be.
    """
    settings = settings or TLSSettings()
    trust_root = None
    if settings.cacertfile is not None:
        authorities = _load(settings, "cacertfile", settings.cacertfile, _certificates)
        trust_root = trustRootFromCertificates([Certificate(authority) for authority in authorities])
    ours: dict[str, Any] = {}
    if settings.certfile is not None and settings.keyfile is not None:
        certificate, *chain = _load(settings, "certfile", settings.certfile, _certificates)
        key = _load(settings, "keyfile", settings.keyfile, lambda pem: _private_key(pem, settings.key_password, certificate))
        ours = {"certificate": certificate, "privateKey": key, "extraCertChain": chain}
    return _NamedHost(host, optionsForClientTLS(host, trustRoot=trust_root, extraCertificateOptions=ours))


@implementer(IOpenSSLClientConnectionCreator)
class _NamedHost:
    """
    Refuses every certificate that does not name the host.

    Twisted's own check lets a certificate pass when service_identity cannot read its names: one without a ``subjectAltName`` or
    with a malformed one. Here whatever is not a positive match is a refusal.
    """

    def __init__(self, host: str, creator: IOpenSSLClientConnectionCreator) -> None:
        self._host = host
        self._creator = creator
        address = isIPAddress(host) or isIPv6Address(host)
        self._wanted: ServiceID = IPAddress_ID(host) if address else DNS_ID(host)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        def verify(_: SSL.Connection, certificate: crypto.X509, _error: int, depth: int, ok: int) -> bool:
            if not ok or depth:
                return bool(ok)
            try:
                verify_service_identity(extract_patterns(certificate), [self._wanted], [])
            except Exception as problem:
                reason = CertificateRefused(f"the certificate is not for {self._host} ({type(problem).__name__})")
                tlsProtocol.failVerification(Failure(reason))
                return False
            return True

        connection: SSL.Connection = self._creator.clientConnectionForTLS(tlsProtocol)
        connection.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, verify)
        return connection


def _load(settings: TLSSettings, key: str, path: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(Path(path).read_bytes())
    except (OSError, crypto.Error, ValueError, TypeError) as error:
        raise ConfigError(f"{path} {_reason(error)}", settings.where, ".".join(filter(None, (settings.path, key)))) from error


def _certificates(pem: bytes) -> list[crypto.X509]:
    found = [crypto.load_certificate(crypto.FILETYPE_PEM, block) for block in _CERTIFICATE.findall(pem)]
    if not found:
        raise ValueError("holds no PEM certificate")
    return found


def _private_key(pem: bytes, password: str | None, certificate: crypto.X509) -> crypto.PKey:
    if b"PRIVATE KEY-----" not in pem:
        raise ValueError("holds no PEM private key")
    try:
        # Without a passphrase of ours OpenSSL would ask for one on the terminal.
        key = crypto.load_privatekey(crypto.FILETYPE_PEM, pem, (password or "").encode())
    except (crypto.Error, ValueError, TypeError) as error:
        if b"ENCRYPTED" not in pem:
            raise
        what = "is encrypted: set key_password" if password is None else "does not open with key_password"
        raise ValueError(what) from error
    context = SSL.Context(SSL.TLS_METHOD)
    try:
        context.use_certificate(certificate)
        context.use_privatekey(key)
        context.check_privatekey()
    except SSL.Error as error:
        raise ValueError("is not the key of the certificate in certfile") from error
    return key


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror}"
    if error.args and isinstance(error.args[0], list):
        reasons = "; ".join(str(entry[-1]) for entry in error.args[0])
        return f"cannot be used: {reasons or 'OpenSSL gives no reason'}"
    return str(error)
