"""Waybill asked outside of what is measured: a session to begin with, a list of what is there."""

import http.client
import json
from dataclasses import dataclass

from bench.processes import Failed


@dataclass(frozen=True)
class Session:
    """A session of Waybill: its public id, and the header field that opens it."""

    id: str
    field: bytes


def new_session(port: int) -> Session:
    headers, body = ask(port, "POST", "/api/session")
    token = headers["set-cookie"].partition(";")[0].partition("=")[2]
    return Session(json.loads(body)["id"], f"Authorization: Bearer {token}".encode())


def ask(port: int, method: str, path: str, *fields: bytes) -> tuple[dict[str, str], bytes]:
    """One request; the headers of the answer, in lower case, and its body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = dict(field.decode().split(": ", 1) for field in fields)
        connection.request(method, path, headers=given)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as error:
        raise Failed(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise Failed(f"{method} {path} was answered {answer.status}")
    return {name.lower(): value for name, value in answer.getheaders()}, body


def put_probe(port: int, path: str) -> int:
    """The status of the answer to a small upload."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("PUT", path, body=b"probe")
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
