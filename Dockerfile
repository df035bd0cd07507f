# One Waybill process. It writes to /data and nowhere else, so the root file system may be read-only.

# The newest interpreter on which the tests run; not Alpine, whose memory allocator cannot be tuned for receiving.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/waybill
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY app app
COPY sql sql
COPY docs/man docs/man
RUN /opt/waybill/bin/python -m pip install --no-cache-dir --disable-pip-version-check --constraint constraints.txt .

FROM python:3.13-slim-bookworm
COPY --from=build /opt/waybill /opt/waybill
RUN install --directory --owner=10001 --group=10001 --mode=0700 /data
ENV PATH=/opt/waybill/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    WAYBILL_HOST=0.0.0.0 \
    WAYBILL_PORT=8000 \
    WAYBILL_STORAGE_DIR=/data
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8000
# http.client, because urllib would go through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['WAYBILL_PORT']), timeout=4); c.request('GET', os.environ.get('WAYBILL_BASE_PATH', '') + '/health/ready'); sys.exit(c.getresponse().status != 200)"]
CMD ["waybill", "serve"]
