"""GET /metrics: the metrics of all processes of the service, in Prometheus' format."""

import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from math import inf
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from app.errors import UploadError
from app.metrics import Reading
from app.storage import Storage
from app.web.services import Services

_HEADERS: Final = {"Cache-Control": "no-store"}
_BUILD: Final = {"version": metadata.version("waybill"), "python": platform.python_version()}


async def show(request: Request[Services]) -> Response:
    """GET /metrics: every metric; none of them names a session, a client or a file."""
    free = await _free_bytes(request.state["storage"])
    registry = CollectorRegistry()
    registry.register(_Exposed([*_of_this_service(free), *map(_exposed, request.state["metrics"].read())]))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST, headers=_HEADERS)


class _Exposed(Collector):
    """A collector of the families, in the form that the library requires."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


async def _free_bytes(storage: Storage) -> int | None:
    """The store's free bytes; None also while the store cannot be asked, so that only this metric is missing."""
    try:
        return await storage.free_bytes()
    except UploadError:
        return None


def _of_this_service(free: int | None) -> Iterator[Metric]:
    build = GaugeMetricFamily("waybill_build_info", "What runs; always 1.", labels=list(_BUILD))
    build.add_metric(list(_BUILD.values()), 1)
    yield build
    if free is not None:
        yield GaugeMetricFamily(
            "waybill_storage_free_bytes", "Space that uploads could still use, above what is kept free.", value=free
        )


def _exposed(reading: Reading) -> Metric:
    family = reading.family
    match family.kind:
        case "counter":
            counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
            for labels, [value] in reading.values:
                counter.add_metric(labels, value)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels)
            for labels, [value] in reading.values:
                gauge.add_metric(labels, value)
            return gauge
        case "histogram":
            histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
            for labels, [*counts, total] in reading.values:
                histogram.add_metric(labels, _buckets(family.bounds, counts), total)
            return histogram


def _buckets(bounds: tuple[float, ...], counts: list[float]) -> list[tuple[str, float]]:
    """Buckets in Prometheus' form: the number up to each bound, and in the end of all."""
    found, below = [], 0.0
    for bound, count in zip([*bounds, inf], counts, strict=True):
        below += count
        found.append(("+Inf" if bound == inf else str(float(bound)), below))
    return found
