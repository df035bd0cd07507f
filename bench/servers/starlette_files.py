"""Downloads as Starlette has them: FileResponse. Arguments: port, directory of the files."""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Route

port, files = sys.argv[1:]


async def download(request):
    return FileResponse(f"{files}/{request.path_params['name']}")


app = Starlette(routes=[Route("/{name}", download)])

if __name__ == "__main__":
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error", access_log=False)
