"""A flow of Node-RED takes what the recipes send."""

import json
import re
from pathlib import Path

from mqhooks.testing import make_event
from mqhooks.tools.ports import free_port
from tests.programs import MODULES, SCRIPTS, ProgramsCase, missing_node, run
from tests.waiting import until

RECIPES = Path(__file__).parent.parent / "docs" / "shapes-automation.conf"
ORIGINS = r"http://[\w.]+:\d+"
PATHS = re.findall(rf"{ORIGINS}(/[^\"]*)", RECIPES.read_text(encoding="utf-8"))


def flow(came, paths):
    """A flow that writes each request's body to a file, and then answers 200."""
    nodes = [
        {"id": "f1", "type": "tab", "label": "Webhooks"},
        {
            "id": "w1",
            "type": "function",
            "z": "f1",
            "func": "return { ...msg, payload: { path: msg.req.path, body: msg.payload } };",
            "wires": [["w2"]],
        },
        {
            "id": "w2",
            "type": "file",
            "z": "f1",
            "filename": str(came),
            "filenameType": "str",
            "appendNewline": True,
            "overwriteFile": "false",
            "wires": [["w3"]],
        },
        {"id": "w3", "type": "http response", "z": "f1", "statusCode": "200", "wires": []},
    ]
    entries = [
        {"id": f"h{number}", "type": "http in", "z": "f1", "url": path, "method": "post", "wires": [["w1"]]}
        for number, path in enumerate(paths)
    ]
    return json.dumps([*nodes, *entries])


class RecipeTests(ProgramsCase):
    skip = missing_node()

    def node_red(self, port):
        """Start it with a flow for the recipes."""
        folder = Path(self.mktemp()).resolve()
        folder.mkdir()
        self.came = folder / "came.jsonl"
        (folder / "flows.json").write_text(flow(self.came, PATHS), encoding="utf-8")
        options = ["--settings", str(SCRIPTS / "nodered.js"), "--userDir", str(folder), "--port", str(port), "flows.json"]
        return run(self, "node", str(MODULES / "node-red" / "red.js"), *options)

    def arrived(self):
        """Paths and bodies, as the flow has got them."""
        return [json.loads(line) for line in self.came.read_text("utf-8").splitlines()] if self.came.exists() else []

    async def test_the_recipes(self):
        """What is published while Node-RED is not there yet is sent when it is."""
        port = free_port()
        recipes = re.sub(ORIGINS, f"http://127.0.0.1:{port}", RECIPES.read_text(encoding="utf-8"))
        recipes = recipes.replace("events = [", "retry { initial = 50ms, max = 200ms }, events = [")
        self.configure(recipes)
        await self.start()
        payloads = [b'{"temperature": 21.50, "unit": "\xc2\xb0C"}', b"on", *(b'{"temperature": %d}' % n for n in range(3))]
        self.send(*(make_event("on_publish", topic="sensors/attic", payload=payload) for payload in payloads))
        await until(lambda: all(sink.failure for sink in self.bridge.webhooks))
        node_red = self.node_red(port)
        await until(lambda: len(self.arrived()) >= 15 or node_red.ended.called, 60)
        self.assertFalse(node_red.ended.called, node_red.stdout + node_red.stderr)
        values = [{"temperature": 21.5, "unit": "°C"}, "on", *({"temperature": number} for number in range(3))]
        bodies = {path: [each["body"] for each in self.arrived() if each["path"] == path] for path in PATHS}
        node, n8n, home = bodies.values()
        self.assertEqual([body["payload"] for body in node], values)
        self.assertEqual({body["action"] for body in node}, {"message_publish"})
        self.assertEqual([body["data"] for body in n8n], values)
        self.assertEqual({(body["device"], body["topic"]) for body in n8n}, {("client-1", "sensors/attic")})
        self.assertEqual([body["temperature"] for body in home], [21.5, None, 0, 1, 2])
        self.assertEqual([sink.outbox.counts.dead for sink in self.bridge.webhooks], [0] * 3)
