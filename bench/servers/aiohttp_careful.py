"""careful.py behind a form on aiohttp. Arguments: port, directory for files, SQLite file."""

import sys

import uvloop
from aiohttp import web
from careful import Rows, Upload

CHUNK = 64 * 1024  # as in aiohttp_streamed.py

port, files, database = sys.argv[1:]
rows = Rows(database)


async def upload(request):
    part = await (await request.multipart()).next()
    sent = Upload(files, part.filename)
    try:
        while chunk := await part.read_chunk(CHUNK):
            sent.write(chunk)
    except BaseException:
        sent.discard()
        raise
    return web.json_response(await sent.finish(rows), status=201)


app = web.Application()
app.add_routes([web.post("/upload", upload)])

if __name__ == "__main__":
    web.run_app(
        app, host="127.0.0.1", port=int(port), access_log=None, print=None, loop=uvloop.new_event_loop(), backlog=4096
    )
