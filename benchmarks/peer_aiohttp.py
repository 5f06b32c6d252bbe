"""
The sidecar that a Python team would write: asyncio's streams, a bounded queue, and 32 workers that post with one
aiohttp session.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

import aiohttp

from benchmarks.peer import AT_ONCE, WAITING, Renderer, arguments


async def relay(port: int, url: str, renderer: Renderer, context: ssl.SSLContext | None) -> None:
    """
    Relay until the process ends.

    :param context: for TLS; ``None`` for the default.
    """
    queue: asyncio.Queue[bytes] = asyncio.Queue(WAITING)

    async def read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                await queue.put(renderer.body(await reader.readexactly(length)))
        except asyncio.IncompleteReadError:
            writer.close()

    async def work(session: aiohttp.ClientSession) -> None:
        while True:
            body = await queue.get()
            try:
                async with session.post(url, data=body, headers=renderer.headers(body)) as response:
                    await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                print(f"lost an event: {error!r}", file=sys.stderr)

    connector = aiohttp.TCPConnector(limit=AT_ONCE, ssl=context or True)
    async with aiohttp.ClientSession(connector=connector) as session:
        server = await asyncio.start_server(read, "127.0.0.1", port)
        async with server:
            await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))


def main() -> None:
    """Read the command line and relay."""
    options = arguments("peer_aiohttp").parse_args()
    context = ssl.create_default_context(cafile=options.authority) if options.authority else None
    asyncio.run(relay(options.port, options.url, Renderer(options.secret), context))


if __name__ == "__main__":
    main()
