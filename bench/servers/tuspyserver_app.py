"""tuspyserver as its manual has it. Arguments: port, directory for files."""

import sys

import uvicorn
from fastapi import FastAPI
from tuspyserver import create_tus_router

port, files = sys.argv[1:]
app = FastAPI()
app.include_router(create_tus_router(prefix="files", files_dir=files))

if __name__ == "__main__":
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error", access_log=False)
