"""The limits that the system sets to the process: who meets one is told of that one, and so is the operator."""

import pytest

from tests.support.service import UPLOADS, service

__all__ = ["service"]

pytestmark = pytest.mark.slow

MIB = 1024 * 1024
SIZE = 5 * MIB
PARTS = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}


@pytest.mark.parametrize("limit", [3 * MIB, 3 * MIB + 1000], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("protocol", ["raw", "tus"])
def test_a_file_above_the_limit_of_the_process_is_refused_with_the_right_words(service, protocol, limit):
    running = service(change=f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    with running.client() as client:
        if protocol == "raw":
            answer = client.put(f"{UPLOADS}/a.bin", content=bytes(SIZE))
        else:
            created = client.post(UPLOADS, headers={"Tus-Resumable": "1.0.0", "Upload-Length": str(SIZE)})
            answer = client.patch(created.headers["location"], headers=PARTS, content=bytes(SIZE))
        assert answer.status_code == 507
        assert "cannot store a file of" in answer.json()["detail"]
        assert "limit" not in answer.json()
        told = running.wait_for("no file of this size can be written", level="error")
        assert told["limited_by"] == f"ulimit -f, {limit} bytes"
        assert client.put(f"{UPLOADS}/b.bin", content=bytes(MIB)).status_code == 201  # the store is trusted still
