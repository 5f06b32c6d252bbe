"""Dead letters mended with jq, by the commands that the documentation gives."""

import json
import os
import re
import sys
from pathlib import Path

from tests.programs import PROJECT, ProgramsCase, missing, run
from tests.waiting import until


def mending():
    """The commands of docs/delivery.rst, and what they print."""
    text = (PROJECT / "docs" / "delivery.rst").read_text(encoding="utf-8").partition(".. _mending:")[2]
    block = re.search(r"\.\. code-block:: console\n\n((?:   .*\n)+)", text)[1]
    lines = [line.strip() for line in block.splitlines()]
    return [line[2:] for line in lines if line.startswith("$ ")], [line for line in lines if not line.startswith("$ ")]


class MendingTests(ProgramsCase):
    skip = missing("jq")

    async def test_as_documented(self):
        def answer(request):
            body = json.loads(request.body)
            refused = 400 if body["from_client_id"] == "odd" else 422
            request.connection.reply(200 if body.get("unit") == "kWh" else refused)

        endpoint, url = self.endpoint(answer)
        self.configure(f'webhook {{ url = "{url}", events = [{{ event = on_message_publish }}] }}')
        await self.start()
        (sink,) = self.bridge.webhooks
        self.publish("a", "b", "odd")
        await until(lambda: sink.outbox.letters == 3)
        commands, printed = mending()
        place = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        shell = run(self, "sh", "-e", "-c", "\n".join(commands).replace("nanomq.conf", str(self.path)), PATH=place)
        await shell.ended
        self.assertEqual((shell.stdout.splitlines(), shell.stderr), (printed, ""))
        await until(lambda: sink.outbox.counts.delivered == 2 and sink.outbox.letters == 1)
        first = {json.loads(request.body)["from_client_id"]: request for request in endpoint.requests[:3]}
        mended = {json.loads(request.body)["from_client_id"]: request for request in endpoint.requests[3:]}
        self.assertEqual(set(mended), {"a", "b"})
        for client, request in mended.items():
            self.assertEqual(json.loads(request.body), json.loads(first[client].body) | {"unit": "kWh"})
            self.assertEqual(request.header("webhook-id"), first[client].header("webhook-id"))
