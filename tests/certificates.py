"""Certificates for tests, made fresh for each run."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat


class Authority:
    """A root certificate authority, or one below another."""

    def __init__(self, name="Test authority", parent=None):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = parent or self
        self.certificate = issuer.sign(self.name, self.key.public_key(), x509.BasicConstraints(ca=True, path_length=None))

    def sign(self, subject, public_key, constraints, names=(), days=(-1, 1)):
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(constraints, critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, *, dns=(), addresses=(), common_name="Test", days=(-1, 1)):
        """
        Make a key and a certificate, and return the certificate as PEM and the key as an object.

        :param days: begin and end of the certificate's validity, in days from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
        names = [*map(x509.DNSName, dns), *(x509.IPAddress(ip_address(address)) for address in addresses)]
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        return pem(self.sign(subject, key.public_key(), constraints, names, days)), key


def pem(certificate):
    """Encode a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def key_pem(key, password=None):
    """Encode a key as PEM."""
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
