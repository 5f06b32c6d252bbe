"""
That the examples of several machines fit together, and that mqhooks and NATS take them.
"""

import os
import re
import subprocess
from configparser import RawConfigParser
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import yaml
from twisted.trial.unittest import SynchronousTestCase

from mqhooks.app import tap
from mqhooks.app.configuration import load
from mqhooks.app.settings import Settings
from mqhooks.outbox.jetstream.store import HEADROOM
from tests.natscluster import program
from tests.test_project_docs import DOCS

SIZES = {"MB": 10**6, "GB": 10**9}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DOCS / name).read_text()))


class Examples(SynchronousTestCase):
    def check(self, path: Path) -> Settings:
        """What --check says of a configuration has to be good, and without a warning."""
        options = tap.Options()
        options.parseOptions(["--config", str(path), "--check"])
        with redirect_stdout(StringIO()):
            exit_ = self.assertRaises(SystemExit, tap.makeService, options)
        self.assertEqual(exit_.code, 0)
        settings = load(str(path))
        self.assertEqual(list(settings.warnings), [])
        assert settings.outbox.jetstream is not None
        self.assertTrue(settings.outbox.jetstream.synced)
        self.assertEqual(len(settings.outbox.jetstream.nats.servers), 3)
        return settings

    def check_nats(self, text: str, settings: Settings) -> None:
        """NATS has to take it, know the same servers and password, and have the room that is reserved."""
        path = Path(self.mktemp())
        path.write_text(text.replace("/var/lib/nats", str(path.resolve().parent)))
        done = subprocess.run(
            [program(), "-t", "-c", str(path)], capture_output=True, text=True, env={**os.environ, "NATS_NAME": "nats-1"}
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        outbox = settings.outbox
        assert outbox.jetstream is not None
        hosts = [server.host for server in outbox.jetstream.nats.servers]
        self.assertEqual(re.findall(r"nats://([\w.-]+):6222", text), hosts)
        self.assertIn(f'{{ user: {outbox.jetstream.nats.auth.user}, password: "{outbox.jetstream.nats.auth.password}" }}', text)
        self.assertIn("sync_interval: always", text)
        number, unit = re.search(r"max_file: (\d+)(\w+)", text).groups()  # type: ignore[union-attr]
        needed = len(settings.webhooks) * (outbox.max_size + outbox.jetstream.partitions * HEADROOM) + outbox.max_size
        self.assertGreater(int(number) * SIZES[unit], needed)

    def test_configurations(self) -> None:
        self.check_nats((DOCS / "cluster-nats.txt").read_text(), self.check(DOCS / "cluster.conf"))

    def test_compose(self) -> None:
        (compose,) = documents("cluster-compose.yaml")
        settings = load(str(DOCS / "cluster.conf"))
        services = compose["services"]
        self.assertEqual(
            sorted(services), [f"{name}-{number}" for name in ("mqhooks", "nats", "vernemq") for number in (1, 2, 3)]
        )
        assert settings.outbox.jetstream is not None
        self.assertLessEqual({server.host for server in settings.outbox.jetstream.nats.servers}, set(services))
        for number in (1, 2, 3):
            nats, mqhooks, vernemq = (services[f"{name}-{number}"] for name in ("nats", "mqhooks", "vernemq"))
            self.assertEqual(nats["environment"]["NATS_NAME"], f"nats-{number}")
            self.assertEqual([volume.split(":")[0] for volume in nats["volumes"]], ["./nats.conf", f"nats-{number}"])
            self.assertIn(f"nats-{number}", compose["volumes"])
            self.assertEqual(mqhooks["volumes"], ["./nanomq.conf:/etc/mqhooks/nanomq.conf:ro"])
            self.assertIn(mqhooks["hostname"], settings.admin.hosts)
            endpoints = [value for key, value in vernemq["environment"].items() if key.endswith("__ENDPOINT")]
            self.assertEqual(len(endpoints), 2)
            for endpoint in endpoints:
                url = urlsplit(endpoint)
                self.assertEqual(
                    (url.hostname, url.port, url.path), (f"mqhooks-{number}", 8892, settings.sources.webhooks.path)
                )
                self.assertEqual(url.query, f"token={settings.sources.webhooks.token}")

    def test_kubernetes(self) -> None:
        objects = {(each["kind"], each["metadata"]["name"]): each for each in documents("cluster-kubernetes.yaml")}
        path = Path(self.mktemp())
        path.write_text(objects["Secret", "mqhooks"]["stringData"]["nanomq.conf"])
        settings = self.check(path)
        self.check_nats(objects["ConfigMap", "nats"]["data"]["nats.conf"], settings)
        for name in ("nats", "vernemq"):
            several = objects["StatefulSet", name]["spec"]
            self.assertEqual((several["replicas"], several["serviceName"]), (3, name))
            self.assertEqual(several["selector"]["matchLabels"], several["template"]["metadata"]["labels"])
            self.assertEqual(objects["Service", name]["spec"]["selector"], several["selector"]["matchLabels"])
        assert settings.outbox.jetstream is not None
        hosts = [server.host for server in settings.outbox.jetstream.nats.servers]
        self.assertEqual(hosts, [f"nats-{number}.nats" for number in range(3)])
        for each in objects.values():
            # The oldest version that has sidecars.
            kubernetes_validate.validate(each, "1.29", strict=True)
        pod = objects["StatefulSet", "vernemq"]["spec"]["template"]["spec"]
        (vernemq,), (mqhooks,) = pod["containers"], pod["initContainers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        self.assertEqual({mount["name"] for mount in mqhooks["volumeMounts"]}, volumes)
        endpoints = [one["value"] for one in vernemq["env"] if one["name"].endswith("__ENDPOINT")]
        self.assertEqual(endpoints, [f"http://127.0.0.1:8892{settings.sources.webhooks.path}"] * 2)
        self.assertEqual(mqhooks["args"], ["--config", "/etc/mqhooks/nanomq.conf"])
        self.assertEqual(mqhooks["restartPolicy"], "Always")
        for probe in ("startupProbe", "livenessProbe"):
            self.assertEqual(mqhooks[probe]["httpGet"], {"path": "/healthz", "port": "admin"})
        # An endpoint that refuses everything would take the broker from its clients.
        self.assertNotIn("readinessProbe", mqhooks)

    def test_unit(self) -> None:
        unit = RawConfigParser(strict=False)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string((DOCS / "cluster-nats.service").read_text())
        service = unit["Service"]
        self.assertEqual(f"/var/lib/{service['StateDirectory']}", "/var/lib/nats")
        self.assertIn("store_dir: /var/lib/nats\n", (DOCS / "cluster-nats.txt").read_text())
        self.assertIn("NATS_NAME", service["Environment"])
        self.assertGreater(int(service["TimeoutStopSec"]), 30)
