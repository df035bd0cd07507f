"""careful.py behind a PUT on Starlette. Arguments: port, directory for files, SQLite file."""

import sys

import uvicorn
from careful import Rows, Upload
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

port, files, database = sys.argv[1:]
rows = Rows(database)


async def upload(request):
    sent = Upload(files, request.path_params["name"])
    try:
        async for chunk in request.stream():
            sent.write(chunk)
    except BaseException:
        sent.discard()
        raise
    return JSONResponse(await sent.finish(rows), 201)


app = Starlette(routes=[Route("/{name}", upload, methods=["PUT"])])

if __name__ == "__main__":
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error", access_log=False)
