"""Both ends of a connection on loopback, each played by a test."""

import asyncio
from contextlib import asynccontextmanager


@asynccontextmanager
async def answering(service):
    """A server on loopback that gives each connection to `service`; its port."""

    async def one(reader, writer):
        async with closing(writer):
            await service(reader, writer)

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def connected(port):
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with closing(writer):
            yield reader, writer


@asynccontextmanager
async def closing(writer):
    try:
        yield
    finally:
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)  # the other side may have left first
