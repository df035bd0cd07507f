"""The upload of FastAPI's manual, as a sync function. Arguments: port, directory for files."""

import shutil
import sys
import uuid

import uvicorn
from fastapi import FastAPI, UploadFile

port, files = sys.argv[1:]
app = FastAPI()


@app.post("/upload", status_code=201)
def upload(file: UploadFile):
    upload_id = str(uuid.uuid4())
    with open(f"{files}/{upload_id}", "wb") as out:
        shutil.copyfileobj(file.file, out)
    return {"id": upload_id, "size": file.size}


if __name__ == "__main__":
    uvicorn.run(app, port=int(port), loop="uvloop", http="httptools", log_level="error", access_log=False)
