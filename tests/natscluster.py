"""
Real NATS servers, alone or as a cluster, and keys and tokens for them.

The server's program comes from PyPI, in the ``test`` extra, on Linux; ``MQHOOKS_NATS_SERVER`` names another one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b32encode, urlsafe_b64encode
from binascii import crc_hqx
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest

from mqhooks.errors import NATSTimeout
from mqhooks.nats.settings import Server
from mqhooks.tools.ports import free_port
from tests.waiting import until

_NODE = """
server_name: {name}
listen: 127.0.0.1:{client}
http: 127.0.0.1:{monitor}
{jetstream}
{cluster}
{more}
"""


def program():
    """Return the path of the server's program."""
    found = os.environ.get("MQHOOKS_NATS_SERVER") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    if found is None:
        raise SkipTest("no nats-server: it is in the test extra")
    return found


_JETSTREAM = 'jetstream {{ store_dir: {store}, sync_interval: "{sync}", max_mem: 64MB, max_file: 1GB }}'


async def leader(js, stream):
    """Return the name of the server that leads a stream. While a cluster settles, a question may stay without an answer."""

    async def answer():
        with suppress(NATSTimeout):
            return (await js.stream_info(stream))["cluster"].get("leader")

    return await until(answer)


class Cluster:
    """
    Servers of one cluster, each with JetStream, killed when the test case ends.

    :param case: the test case.
    :param size: one server, or three.
    :param sync: JetStream's ``sync_interval``: ``always``, or a time; ``None`` for no JetStream.
    :param more: more configuration for each server.
    :param advertise: whether servers tell clients of each other.
    :param stores: each server's directory for streams, if not beside its configuration.
    :ivar processes: each server's process, ``None`` while it is killed.
    """

    def __init__(self, case, size=1, sync="2m", more="", *, advertise=True, stores=()):
        self.program = program()
        self.size = size
        self.processes = [None] * size
        self.directory = Path(case.mktemp()).resolve()
        ports = set()
        while len(ports) < 3 * size:
            ports.add(free_port())
        ports = list(ports)
        self.clients, self.monitors, routes = ports[:size], ports[size : 2 * size], ports[2 * size :]
        for number in range(size):
            directory = self.directory / f"n{number}"
            directory.mkdir(parents=True)
            urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
            quiet = "" if advertise else ", no_advertise: true"
            cluster = (
                f"cluster {{ name: test, listen: 127.0.0.1:{routes[number]}, routes: [{urls}]{quiet} }}" if size > 1 else ""
            )
            store = str(stores[number] if stores else directory)
            (directory / "nats.conf").write_text(
                _NODE.format(
                    name=f"n{number}",
                    client=self.clients[number],
                    monitor=self.monitors[number],
                    jetstream=_JETSTREAM.format(store=json.dumps(store), sync=sync) if sync else "",
                    cluster=cluster,
                    more=more,
                )
            )
        case.addCleanup(self.end)

    @property
    def servers(self):
        """The servers' addresses."""
        return tuple(Server("127.0.0.1", port) for port in self.clients)

    async def start(self):
        """Start all servers, and wait until they can be used."""
        for number in range(self.size):
            self.spawn(number)
        await self.ready()
        return self

    def spawn(self, number):
        """Start a server, for the first time or again."""
        directory = self.directory / f"n{number}"
        with (directory / "log").open("ab") as log:
            command = [self.program, "-c", str(directory / "nats.conf")]
            self.processes[number] = subprocess.Popen(command, stdout=log, stderr=log)

    async def ready(self, seconds=20.0):
        """Wait until all running servers are healthy and have a leader."""
        await until(lambda: deferToThread(self._well), seconds)

    def ailments(self):
        """Return what the unhealthy servers report."""
        said = []
        for number in [number for number, process in enumerate(self.processes) if process is not None]:
            try:
                self._ask(number, "healthz")
            except HTTPError as error:
                said.append(f"n{number}: {error.read().decode(errors='replace')}")
            except OSError as error:
                said.append(f"n{number}: {error}")
        return said

    def log(self, number=0):
        """Return a server's log."""
        return (self.directory / f"n{number}" / "log").read_text()

    def kill(self, number):
        """Kill a server."""
        process, self.processes[number] = self.processes[number], None
        process.kill()
        process.wait()

    def stop(self, number):
        """Suspend a server."""
        self.processes[number].send_signal(signal.SIGSTOP)

    def go_on(self, number):
        """Resume a server."""
        self.processes[number].send_signal(signal.SIGCONT)

    def end(self):
        """Kill all servers."""
        for number, process in enumerate(self.processes):
            if process is not None:
                self.kill(number)

    def _well(self):
        running = [number for number, process in enumerate(self.processes) if process is not None]
        for number in running:
            assert self.processes[number].poll() is None, self.log(number)
        try:
            well = all(self._ask(number, "healthz")["status"] == "ok" for number in running)
            if self.size > 1 and well:
                meta = [self._ask(number, "jsz")["meta_cluster"] for number in running]
                well = all(each.get("leader") and each["cluster_size"] == self.size for each in meta)
        except (OSError, KeyError):
            return False
        return well

    def _ask(self, number, page):
        with urlopen(f"http://127.0.0.1:{self.monitors[number]}/{page}", timeout=1) as answer:
            return json.load(answer)


OPERATOR, ACCOUNT, USER = 14, 0, 20


class NKey:
    """
    A key in NATS's format.

    :param kind: the kind of its owner.
    """

    def __init__(self, kind=USER):
        self.key = Ed25519PrivateKey.generate()
        raw = self.key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        kind <<= 3
        self.seed = encoded(bytes([18 << 3 | kind >> 5, kind << 3 & 0xFF]) + raw)
        self.public = encoded(bytes([kind]) + self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def token(self, subject, name, **claims):
        """Return a JWT about another key, signed by this one."""
        body = {"iat": 1_700_000_000, "iss": self.public, "jti": name, "name": name, "sub": subject.public}
        parts = {"typ": "JWT", "alg": "ed25519-nkey"}, {**body, "nats": {"version": 2, **claims}}
        text = ".".join(base64(json.dumps(part).encode()) for part in parts)
        return f"{text}.{base64(self.key.sign(text.encode()))}"


def encoded(raw):
    """Encode bytes in Base32 with a checksum."""
    return b32encode(raw + crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def base64(raw):
    """Encode bytes in Base64 as in JWTs."""
    return urlsafe_b64encode(raw).decode().rstrip("=")


def credentials(token, seed):
    """Return the text of a credentials file, as ``nsc`` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\nNKEY Seed printed below can be used to sign and prove "
        f"identity.\n\n-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n\n*****\n"
    )
