"""What someone writes in an afternoon: Starlette's own form parser, aiofiles, a row through databases.

Arguments: port, directory for files, SQLite file, "wal" or "default" for its journal mode.
"""

import sys
import uuid
from contextlib import asynccontextmanager

import aiofiles
import uvicorn
from databases import Database
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

port, files, rows, journal = sys.argv[1:]
# With the 5 seconds that SQLite waits for its lock by default, some of 64 parallel uploads end as errors.
database = Database(f"sqlite+aiosqlite:///{rows}", timeout=60)

INSERT = "INSERT INTO uploads (id, filename, size) VALUES (:id, :filename, :size)"


@asynccontextmanager
async def lifespan(app):
    await database.connect()
    if journal == "wal":
        await database.execute("PRAGMA journal_mode = WAL")
    await database.execute("CREATE TABLE uploads (id TEXT PRIMARY KEY, filename TEXT NOT NULL, size INTEGER NOT NULL)")
    yield
    await database.disconnect()


async def upload(request):
    async with request.form() as form:
        sent = form["file"]
        upload_id = str(uuid.uuid4())
        size = 0
        async with aiofiles.open(f"{files}/{upload_id}", "wb") as out:
            while block := await sent.read(1024 * 1024):
                size += len(block)
                await out.write(block)
        await database.execute(INSERT, {"id": upload_id, "filename": sent.filename, "size": size})
    return JSONResponse({"id": upload_id, "size": size}, 201)


app = Starlette(routes=[Route("/upload", upload, methods=["POST"])], lifespan=lifespan)

if __name__ == "__main__":
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error", access_log=False)
