"""
TLS to servers of any protocol: certificate files, the standard library's context, and explanations of failures.

- OpenSSL itself checks the host name during the handshake, so nothing is sent to a server with another name.
- A failed handshake is explained in plain words, which the troubleshooting guide repeats.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field

from mqhooks.errors import ConfigError
from mqhooks.support.files import read_bounded

CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)

_OF_THE_CERTIFICATE = ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """
    Settings for TLS to a server. The host's name is always verified.

    :param cacertfile: the PEM file of the authorities to trust instead of the system's.
    :param certfile: the PEM file of our certificate, followed by its intermediates; needs ``keyfile``.
    :param keyfile: the PEM file of its private key.
    :param key_password: the password that the key is encrypted with.
    :param where: the source of these settings, such as a file; for errors.
    :param path: their key in it; for errors.
    """

    cacertfile: str | None = None
    certfile: str | None = None
    keyfile: str | None = None
    key_password: str | None = field(default=None, repr=False)
    where: str = field(default="", repr=False, compare=False)
    path: str = field(default="", repr=False, compare=False)


def client_context(settings: TLSSettings | None) -> ssl.SSLContext:
    """
    Make the context of all connections to one endpoint.

    :param settings: ``None`` for the system's authorities and no client certificate.
    :raises mqhooks.errors.ConfigError: when a file cannot be read or is not what it should be.
    """
    settings = settings or TLSSettings()
    # PROTOCOL_TLS_CLIENT demands a certificate and checks that it names the host.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Otherwise a certificate without a subjectAltName would pass by its subject's common name.
    context.hostname_checks_common_name = False
    # Private authorities often leave out what RFC 5280 demands, key identifiers for example.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if settings.cacertfile is None:
        context.set_default_verify_paths()
    else:
        authorities = read_certificates(settings, "cacertfile", settings.cacertfile)
        context.load_verify_locations(cadata=b"".join(authorities).decode("ascii"))
    if settings.certfile is not None and settings.keyfile is not None:
        read_certificates(settings, "certfile", settings.certfile)
        _load_key(context, settings, settings.certfile, settings.keyfile)
    return context


def read_certificates(settings: TLSSettings, key: str, path: str) -> list[bytes]:
    """
    Read the certificates of a PEM file.

    :param key: the setting that names the file.
    :returns: each as PEM; at least one.
    :raises mqhooks.errors.ConfigError: when the file has none, or one cannot be used.
    """
    found: list[bytes] = CERTIFICATE.findall(_read(settings, key, path))
    if not found:
        raise _mistake(settings, key, f"{path} holds no PEM certificate")
    for number, certificate in enumerate(found):
        found[number] = certificate = certificate.rstrip() + b"\n"
        try:
            # A throwaway context: this trusts nothing, it only parses.
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=certificate.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise _mistake(settings, key, f"{path} cannot be used: {_reason(error)}") from error
    return found


def _load_key(context: ssl.SSLContext, settings: TLSSettings, certfile: str, keyfile: str) -> None:
    pem = _read(settings, "keyfile", keyfile)
    if b"PRIVATE KEY-----" not in pem:
        raise _mistake(settings, "keyfile", f"{keyfile} holds no PEM private key")
    try:
        # Without a password callback OpenSSL prompts on the terminal, and blocks.
        context.load_cert_chain(certfile, keyfile, lambda: settings.key_password or "")
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason == "KEY_VALUES_MISMATCH":
            raise _mistake(settings, "keyfile", f"{keyfile} is not the key of the certificate in certfile") from error
        if reason in _OF_THE_CERTIFICATE:
            raise _mistake(settings, "certfile", f"{certfile} cannot be used: {_reason(error)}") from error
        if b"ENCRYPTED" not in pem:
            raise _mistake(settings, "keyfile", f"{keyfile} cannot be used: {_reason(error)}") from error
        what = "is encrypted: set key_password" if settings.key_password is None else "does not open with key_password"
        raise _mistake(settings, "keyfile", f"{keyfile} {what}") from error


def _read(settings: TLSSettings, key: str, path: str) -> bytes:
    try:
        return read_bounded(path)
    except OSError as error:
        raise _mistake(settings, key, f"{path} cannot be read: {error.strerror}") from error


def _mistake(settings: TLSSettings, key: str, message: str) -> ConfigError:
    return ConfigError(message, settings.where, ".".join(filter(None, (settings.path, key))))


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    return spell(reason) if reason else str(error.args[-1] if error.args else error)


def spell(reason: str) -> str:
    """Turn OpenSSL's name for a reason, such as ``NO_SUITABLE_KEY_SHARE``, into words."""
    return reason.replace("_", " ").lower()


# X509_V_ERR_…: x509_vfy.h
_UNKNOWN = "is signed by an unknown authority: set tls.cacertfile to the authority's certificate if it is a private one"
VERDICTS = {
    2: _UNKNOWN,
    9: "is not valid yet: compare the clocks",
    10: "has expired",
    18: "is self-signed: set tls.cacertfile to it if it is to be trusted",
    19: _UNKNOWN,
    20: _UNKNOWN,
    21: _UNKNOWN,
    23: "has been revoked",
    26: "is not meant for servers",
    62: "is not for {host}",
    64: "is not for {host}",
}
"""Explanations of bad certificates, by OpenSSL's error number."""

_CLIENT_ALERTS = (
    "CERTIFICATE_REQUIRED",
    "BAD_CERTIFICATE",
    "UNSUPPORTED_CERTIFICATE",
    "CERTIFICATE_REVOKED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_UNKNOWN",
    "ALERT_UNKNOWN_CA",
    "ACCESS_DENIED",
)
_VERSIONS = ("UNSUPPORTED_PROTOCOL", "PROTOCOL_VERSION", "VERSION_TOO_LOW")
_NOT_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "UNKNOWN_PROTOCOL")


def certificate_problem(code: int, message: str, host: str, port: int) -> str:
    """Explain what is wrong with an endpoint's certificate, given OpenSSL's error number and text."""
    verdict = VERDICTS.get(code, f"cannot be trusted: {message}")
    return f"the certificate of {host_and_port(host, port)} " + verdict.format(host=host)


def handshake_problem(reason: str, host: str, port: int, plain: str = "http") -> str:
    """
    Explain why a handshake failed, given OpenSSL's name for the reason.

    :param plain: the scheme that the port may speak instead.
    """
    reason = reason.upper().replace(" ", "_")
    peer = host_and_port(host, port)
    if any(name in reason for name in _NOT_TLS):
        return not_tls(host, port, plain)
    if any(name in reason for name in _VERSIONS):
        return f"{peer} supports no safe version of TLS: 1.2 or 1.3 is needed"
    if refuses_client(reason):
        return f"{peer} does not accept our client certificate, or requires one: check tls.certfile ({spell(reason)})"
    return f"the TLS handshake with {peer} failed: {spell(reason)}"


def is_handshake_problem(reason: str) -> bool:
    """Return whether only a handshake can fail for this reason, so that the endpoint has received nothing."""
    reason = reason.upper().replace(" ", "_")
    return refuses_client(reason) or any(name in reason for name in (*_NOT_TLS, *_VERSIONS, "CERTIFICATE_VERIFY", "HANDSHAKE"))


def no_handshake(timeout: float) -> str:
    """Explain that the port accepted the connection, but the handshake did not finish in time."""
    return f"no TLS handshake within {timeout:g} s: the port may be meant for http://"


def not_tls(host: str, port: int, plain: str = "http") -> str:
    """Explain that the port does not speak TLS."""
    return f"this port does not speak TLS: {host_and_port(host, port)} may be meant for {plain}://"


def refuses_client(reason: str) -> bool:
    """Return whether a reason is an alert about our certificate or its absence: the endpoint has then received nothing."""
    return "ALERT" in reason and any(name in reason for name in _CLIENT_ALERTS)


def host_and_port(host: str, port: int) -> str:
    """Write host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
