"""
The server that a Python team would write for VerneMQ's own webhooks: aiohttp, a bounded queue, and 32 workers that post with
one aiohttp session. A request is answered when its event is in the queue.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from base64 import b64decode

import aiohttp
from aiohttp import web

from benchmarks.peer import AT_ONCE, WAITING, Renderer, arguments


async def relay(port: int, url: str, renderer: Renderer) -> None:
    """Relay until the process ends."""
    queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING)

    async def event(request: web.Request) -> web.Response:
        message = await request.json()
        body = {
            "ts": time.time_ns() // 1_000_000,
            "topic": message["topic"],
            "retain": message["retain"],
            "qos": message["qos"],
            "action": "message_publish",
            "from_username": message["username"],
            "from_client_id": message["client_id"],
            "payload": b64decode(message["payload"]).decode(),
        }
        await queue.put(json.dumps(body, separators=(",", ":")).encode())
        return web.json_response({"result": "next"})

    async def work(session: aiohttp.ClientSession) -> None:
        while True:
            body = await queue.get()
            try:
                async with session.post(url, data=body, headers=renderer.headers(body)) as response:
                    await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                print(f"lost an event: {error!r}", file=sys.stderr)

    app = web.Application()
    app.router.add_post("/vernemq", event)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE)) as session:
        await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))


def main() -> None:
    """Read the command line and relay."""
    options = arguments("peer_webhooks").parse_args()
    asyncio.run(relay(options.port, options.url, Renderer(options.secret)))


if __name__ == "__main__":
    main()
