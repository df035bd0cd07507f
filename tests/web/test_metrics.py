"""What Prometheus reads is what happened."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.errors import Unavailable
from app.maintenance.sweep import Sweeper
from app.metrics import Metrics
from app.metrics.families import STAGES, SWEPT
from app.model import MAX_TIME_US
from app.uploads import records as upload_records
from tests.support.asgi import Service, serving, settings_in
from tests.support.unreliable import until

TUS = {"Tus-Resumable": "1.0.0"}
UPLOADS = "/api/ingestion/uploads"


@pytest.fixture
async def service(tmp_path: Path, database_url: str) -> Any:
    async with serving(settings_in(tmp_path, database_url)) as running:
        yield running


async def figures(service: Service) -> dict[str, float]:
    """Every figure, by name and labels as they are written."""
    answer = await service.client().get("/metrics")
    assert answer.status == 200
    assert answer["content-type"].startswith("text/plain; version=")
    assert answer["cache-control"] == "no-store"
    assert answer.all("set-cookie") == []
    found = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, _, number = line.rpartition(" ")
            assert name not in found
            found[name] = float(number)
    return found


async def changed(service: Service, before: dict[str, float], name: str) -> dict[str, float]:
    """What of the figures of this name is more or less than before."""
    now = await figures(service)
    return {key: now[key] - before[key] for key in now if key.startswith(name) and now[key] != before[key]}


async def families(service: Service) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    answer = await service.client().get("/metrics")
    found = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, family.documentation, tuple(sorted(labels)))
    return found


async def test_names_are_as_prometheus_has_them(service: Service) -> None:
    for name, (kind, text, _) in (await families(service)).items():
        assert re.fullmatch(r"waybill_[a-z_]+[a-z]", name)
        assert (kind == "counter") == name.endswith("_total"), name
        assert "second" not in name or name.endswith("_seconds"), name
        assert text.endswith(".")


async def test_an_upload_is_counted_by_how_it_came_and_how_it_ended(service: Service) -> None:
    before, client = await figures(service), service.client()
    assert (await client.put("a.bin", b"x" * 1000)).status == 201
    assert await changed(service, before, "waybill_uploads_total") == {
        'waybill_uploads_total{outcome="completed",protocol="raw"}': 1
    }
    assert await changed(service, before, "waybill_received_bytes_total") == {
        'waybill_received_bytes_total{protocol="raw"}': 1000
    }
    for stage in STAGES:
        name = f'waybill_stage_seconds_count{{stage="{stage}"}}'
        assert await changed(service, before, name) == {name: 1}
    assert await changed(service, before, "waybill_batch_files_sum") == {"waybill_batch_files_sum": 1}
    assert await changed(service, before, "waybill_batch_rows_sum") == {"waybill_batch_rows_sum": 1}


async def test_a_failed_upload_is_counted_with_the_bytes_that_came(service: Service) -> None:
    before, client = await figures(service), service.client()
    digest = {"Repr-Digest": "sha-256=:" + "A" * 43 + "=:"}
    (await client.put("a.bin", b"x" * 10, headers=digest)).refused(400, "digest_mismatch")
    await client.put("b.bin", [b"x" * 7, b"y" * 7], hang_up_after=1)
    assert await changed(service, before, "waybill_uploads_total") == {
        'waybill_uploads_total{outcome="failed",protocol="raw"}': 2
    }
    assert await changed(service, before, "waybill_received_bytes_total") == {
        'waybill_received_bytes_total{protocol="raw"}': 17
    }


async def test_a_resumable_upload_is_counted_once_and_when_it_has_ended(service: Service) -> None:
    before, client = await figures(service), service.client()
    kept = (await client.post(UPLOADS, headers={**TUS, "Upload-Length": "4"}))["location"]
    given_up = (await client.post(UPLOADS, headers={**TUS, "Upload-Length": "4"}))["location"]
    chunk = {**TUS, "Content-Type": "application/offset+octet-stream"}
    assert (await client.request("PATCH", kept, headers={**chunk, "Upload-Offset": "0"}, body=b"ab")).status == 204
    assert await changed(service, before, "waybill_uploads_total") == {}
    assert (await client.request("PATCH", kept, headers={**chunk, "Upload-Offset": "2"}, body=b"cd")).status == 204
    assert (await client.request("DELETE", given_up, headers=TUS)).status == 204
    assert (await client.request("DELETE", kept, headers=TUS)).status == 204  # only its URL is given up
    assert await changed(service, before, "waybill_uploads_total") == {
        'waybill_uploads_total{outcome="completed",protocol="tus"}': 1,
        'waybill_uploads_total{outcome="cancelled",protocol="tus"}': 1,
    }
    assert await changed(service, before, "waybill_received_bytes_total") == {
        'waybill_received_bytes_total{protocol="tus"}': 4
    }


async def test_an_upload_in_flight_is_counted_while_it_lasts(service: Service) -> None:
    sent, go_on = asyncio.Event(), asyncio.Event()

    async def body() -> Any:
        yield b"x" * 500
        sent.set()
        await go_on.wait()

    names = ("waybill_live_uploads", "waybill_staged_bytes")
    sending = asyncio.create_task(service.client().put("a.bin", body()))
    await sent.wait()
    now = await figures(service)
    assert [now[name] for name in names] == [1, 500]
    go_on.set()
    assert (await sending).status == 201
    now = await figures(service)
    assert [now[name] for name in names] == [0, 0]
    assert 0 < now["waybill_database_slots_free"] <= now["waybill_database_slots"] == 8
    assert now["waybill_workers"] == 1


async def test_free_space_is_what_an_upload_could_use_and_absent_when_unknown(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, name = service.state["storage"], "waybill_storage_free_bytes"
    monkeypatch.setattr(storage, "free_bytes", lambda: _gives(12345))
    assert (await figures(service))[name] == 12345
    monkeypatch.setattr(storage, "free_bytes", lambda: _gives(None))
    assert name not in await figures(service)
    monkeypatch.setattr(storage, "free_bytes", lambda: _gives(Unavailable()))
    assert name not in await figures(service)


async def _gives(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


async def test_a_sweep_is_counted_with_what_it_did(tmp_path: Path) -> None:
    metrics = Metrics()
    async with serving(settings_in(tmp_path)) as service:
        assert (await service.client().put("a.bin", b"x")).status == 201
        state = service.state

        def start_is_over() -> bool:
            with state["storage"].alone_at("sweep") as alone:
                return alone

        await until(start_is_over)
        sweeper = Sweeper(state["storage"], state["db"], now_us=lambda: MAX_TIME_US, metrics=metrics)
        swept = await sweeper.once()
    found = {reading.family.name: dict(reading.values) for reading in metrics.read()}
    assert found["waybill_swept_total"] == {(what,): [getattr(swept, what)] for what in SWEPT}
    assert found["waybill_swept_total"]["sessions_ended",] == [1]
    outcome = "done" if swept.stopped is None else "stopped"  # the service's own may be at it
    assert found["waybill_sweeps_total"] == {(each,): [each == outcome] for each in ("done", "stopped", "failed")}


async def test_a_broken_record_is_counted_each_time_it_is_left_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = service.client()
    assert (await client.put("a.bin", b"x")).status == 201
    monkeypatch.setattr(upload_records, "_readable", lambda rows: iter(()))
    before = await figures(service)
    assert (await client.get("/api/ingestion/history")).json()["skipped"] == 1
    assert (await client.get("/api/ingestion/history?format=ndjson")).body == b""
    assert await changed(service, before, "waybill_broken") == {"waybill_broken_records_total": 2}
