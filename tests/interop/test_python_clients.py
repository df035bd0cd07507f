"""tuspy and aiotus, the clients of Python."""

import asyncio
import io
import itertools

import aiohttp
import aiotus
import multidict
import pytest
import yarl
from tusclient.client import TusClient
from tusclient.exceptions import TusUploadFailed
from tusclient.request import TusRequest

from tests.interop.clients import MIB, everything, have_landed
from tests.support.service import PATIENCE, UPLOADS, service

__all__ = ["service"]

CHUNK = 256 * 1024


@pytest.fixture
def headers(running):
    return running.session()


@pytest.fixture
def client(running, headers):
    with running.client(headers=headers) as client:
        yield client


class TestTuspy:
    """It sends a digest with each request, when it is told to."""

    @pytest.fixture
    def tuspy(self, running, headers):
        return TusClient(f"{running.url}{UPLOADS}", headers=headers)

    @pytest.mark.parametrize("checksum", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 2 * CHUNK, 3 * MIB + 1])
    def test_a_file_is_stored_by_tuspy(self, tuspy, client, source, size, checksum):
        piece = source.piece("file.bin", size)
        sent = self.uploader(tuspy, piece, upload_checksum=checksum)
        sent.upload()
        [record] = have_landed(client, [piece], "tus")
        assert len(everything(client)) == 1
        assert record["content_type"] in (None, "application/octet-stream")

    def uploader(self, tuspy, piece, **options):
        # Its own files it would leave open.
        stream = io.BytesIO(piece.content)
        metadata = {"filename": piece.name}
        return tuspy.uploader(file_stream=stream, chunk_size=CHUNK, metadata=metadata, retry_delay=0, **options)

    @pytest.mark.parametrize("checksum", [False, True])
    def test_another_client_goes_on_where_one_stopped(self, tuspy, client, source, checksum):
        piece = source.piece("file.bin", 5 * CHUNK + 1)
        first = self.uploader(tuspy, piece, upload_checksum=checksum)
        first.upload(stop_at=2 * CHUNK)
        [record] = everything(client)
        assert (record["status"], record["size"]) == ("uploading", 2 * CHUNK)
        second = self.uploader(tuspy, piece, url=first.url, upload_checksum=checksum)
        assert second.offset == 2 * CHUNK
        second.upload()
        have_landed(client, [piece], "tus")

    def test_bytes_altered_on_their_way_are_not_kept(self, tuspy, client, source, monkeypatch):
        piece = source.piece("file.bin", 3 * CHUNK)
        uploader = self.uploader(tuspy, piece, upload_checksum=True)
        uploader.upload_chunk()
        with monkeypatch.context() as patched:
            patched.setattr(TusRequest, "add_checksum", digest_of_something_else(TusRequest.add_checksum))
            with pytest.raises(TusUploadFailed) as refused:
                uploader.upload_chunk()
        assert refused.value.status_code == 460
        assert uploader.get_offset() == CHUNK
        uploader.upload()
        have_landed(client, [piece], "tus")

    @pytest.mark.slow
    def test_an_upload_goes_on_after_a_restart(self, service, source):
        running = service()
        headers = running.session()
        piece = source.piece("file.bin", 5 * CHUNK)
        first = self.uploader(TusClient(f"{running.url}{UPLOADS}", headers=headers), piece, upload_checksum=True)
        first.upload(stop_at=2 * CHUNK)
        running.kill()
        running.start()
        url = f"{running.url}{yarl.URL(first.url).path}"
        second = self.uploader(TusClient(f"{running.url}{UPLOADS}", headers=headers), piece, url=url)
        assert second.offset == 2 * CHUNK
        second.upload()
        with running.client(headers=headers) as client:
            have_landed(client, [piece], "tus")


def digest_of_something_else(add_checksum):
    return lambda request, chunk: add_checksum(request, chunk + b"altered")


class WithWholeAddress(aiohttp.ClientResponse):
    """aiotus does not follow a Location that is a path alone; its caller can give it such answers."""

    @property
    def headers(self):
        headers = multidict.CIMultiDict(super().headers)
        if "Location" in headers:
            headers["Location"] = str(self.url.join(yarl.URL(headers["Location"])))
        return multidict.CIMultiDictProxy(headers)


class TestAiotus:
    """It asks before it sends, reads its metadata back, and joins files."""

    @pytest.fixture
    async def session(self, headers):
        timeout = aiohttp.ClientTimeout(PATIENCE)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, response_class=WithWholeAddress) as session:
            yield session

    @pytest.mark.parametrize("size", [0, 1, 2 * CHUNK, 3 * MIB + 1])
    async def test_a_file_is_stored_by_aiotus(self, running, client, session, source, size):
        piece = source.piece("file.bin", size)
        metadata = {"filename": piece.name.encode(), "nothing": None, "filetype": b"text/plain", "empty": b""}
        file = io.BytesIO(piece.content)
        url = await aiotus.upload(f"{running.url}{UPLOADS}", file, metadata, session, chunksize=CHUNK)
        assert url is not None
        [record] = have_landed(client, [piece], "tus")
        assert record["content_type"] == "text/plain"
        said = await aiotus.metadata(url, session)
        assert {name: value or None for name, value in said.items()} == {**metadata, "empty": None}

    async def test_files_are_joined_into_one(self, running, client, session, source):
        piece = source.piece("joined.bin", 5 * MIB + 17)
        ends = [0, MIB, MIB + 1, 3 * MIB, piece.size]
        content = piece.content
        files = [io.BytesIO(content[start:end]) for start, end in itertools.pairwise(ends)]
        metadata = {"filename": piece.name.encode()}
        url = await aiotus.upload_multiple(f"{running.url}{UPLOADS}", files, metadata, session, chunksize=CHUNK)
        assert url is not None
        await asyncio.to_thread(have_landed, client, [piece], "tus")
        assert len(everything(client)) == 1
        assert await aiotus.metadata(url, session) == metadata
