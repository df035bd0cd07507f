"""The streamed upload of aiohttp's manual, as a form or a PUT: each chunk is written as it comes.

Arguments: port, directory for files.
"""

import sys
import uuid

import uvloop
from aiohttp import web

CHUNK = 64 * 1024  # of 8 KiB (the default), 64 KiB, 256 KiB and 1 MiB the one that costs least

port, files = sys.argv[1:]


async def upload(request):
    part = await (await request.multipart()).next()
    upload_id = str(uuid.uuid4())
    size = 0
    with open(f"{files}/{upload_id}", "wb") as out:  # noqa: ASYNC230  # as the manual has it
        while chunk := await part.read_chunk(CHUNK):
            size += len(chunk)
            out.write(chunk)
    return web.json_response({"id": upload_id, "size": size}, status=201)


async def put(request):
    upload_id = str(uuid.uuid4())
    size = 0
    with open(f"{files}/{upload_id}", "wb") as out:  # noqa: ASYNC230
        async for chunk in request.content.iter_any():
            size += len(chunk)
            out.write(chunk)
    return web.json_response({"id": upload_id, "size": size}, status=201)


app = web.Application()
app.add_routes([web.post("/upload", upload), web.put("/{name}", put)])

if __name__ == "__main__":
    web.run_app(
        app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop(), backlog=4096
    )
