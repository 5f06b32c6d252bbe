"""HTTP clients of others call VerneMQ's webhooks, with what VerneMQ has sent."""

import json
import subprocess
from collections import defaultdict
from http.client import HTTPConnection

from twisted.internet import reactor
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SkipTest, TestCase

from mqhooks.sources.webhooks.decode import QUESTIONS
from mqhooks.sources.webhooks.factory import WebhooksFactory
from mqhooks.sources.webhooks.listener import WebhooksService
from mqhooks.sources.webhooks.settings import WebhooksSettings
from mqhooks.testing import RecordingSink
from tests.programs import missing, program
from tests.vernemq import recorded

NODE = """
const http = require("http");
const [port, clients, each] = process.argv.slice(1).map(Number);
const agent = new http.Agent({ keepAlive: true, maxSockets: 50 });
const answers = {};
function call(client, number) {
  if (number === each) return Promise.resolve();
  const payload = Buffer.from(String(number)).toString("base64");
  const message = { username: null, mountpoint: "", client_id: client, qos: 1, topic: "t", payload, retain: false };
  const body = JSON.stringify(message);
  const headers = { "Content-Type": "application/json", "vernemq-hook": "on_publish" };
  if (number % 2) headers["Content-Length"] = Buffer.byteLength(body);
  return new Promise((resolve, reject) => {
    const options = { port, host: "127.0.0.1", method: "POST", path: "/vernemq", headers, agent };
    const request = http.request(options, (response) => {
      let text = "";
      response.on("data", (part) => (text += part));
      response.on("end", () => {
        const answer = `${response.statusCode} ${text}`;
        answers[answer] = (answers[answer] || 0) + 1;
        resolve();
      });
    });
    request.on("error", reject);
    if (number % 2) request.end(body);
    else { request.write(body.slice(0, 20)); request.end(body.slice(20)); }
  }).then(() => call(client, number + 1));
}
Promise.all([...Array(clients).keys()].map((client) => call(`client-${client}`, 0))).then(() => {
  console.log(JSON.stringify(answers));
  agent.destroy();
});
"""


class ClientTests(TestCase):
    timeout = 120

    def setUp(self):
        self.sink = RecordingSink()
        settings = WebhooksSettings(listen=("tcp:0",))
        service = WebhooksService(reactor, settings, WebhooksFactory(reactor, self.sink, settings))
        service.startService()
        self.addCleanup(service.stopService)
        self.port = service.addresses[0].port

    async def test_client_in_node(self):
        if why := missing("node"):
            raise SkipTest(why)
        command = [program("node"), "-e", NODE, str(self.port), "80", "10"]
        done = await deferToThread(subprocess.run, command, capture_output=True, text=True, timeout=50)
        self.assertEqual(done.stderr, "")
        self.assertEqual(json.loads(done.stdout), {'200 {"result":"next"}': 800})
        came = defaultdict(list)
        for event in self.sink.events:
            came[event.client_id].append(int(event.message.payload))
        self.assertEqual(set(map(tuple, came.values())), {tuple(range(10))})
        self.assertEqual(len(came), 80)

    async def test_client_of_the_standard_library(self):
        requests = list(recorded())

        def call():
            connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
            for each in requests:
                connection.request("POST", "/vernemq", each.body, {"vernemq-hook": each.hook})
                response = connection.getresponse()
                yield response.status, response.getheader("content-type"), json.loads(response.read())
            connection.close()

        answers = await deferToThread(lambda: list(call()))
        self.assertEqual({repr(answer) for answer in answers}, {repr((200, "application/json", {"result": "next"}))})
        events = [each for each in requests if each.hook not in QUESTIONS]
        self.assertEqual([event.hook for event in self.sink.events], [each.hook.removesuffix("_m5") for each in events])
