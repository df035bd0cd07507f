"""The local stack and the image, held true without a container engine.

What would run is run: the install steps of the Dockerfile, its health check, the real proxy with its configuration.
What only an engine reads is read here and compared with the settings it must agree with.
"""

import asyncio
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import tomllib
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from app.config import load
from app.errors import Unavailable
from tests.support.loopback import answering, connected
from tests.support.proxy import CONFIGURATION, DEPLOY, localised, proxy
from tests.support.tools import search_path, tool

__all__ = ["proxy"]  # a fixture is used by its name alone

ROOT = Path(__file__).parent.parent
NO_ENV_FILE = Path("/nonexistent/.env")
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
OPERATOR = {"POSTGRES_PASSWORD": "f3b0c44298fc1c149afb"}


def dockerfile():
    """The instructions, as pairs of word and rest; a rest in brackets is read as JSON."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line:
            word, _, rest = line.partition(" ")
            yield word, json.loads(rest) if rest.startswith("[") else rest


def instructions(word):
    return [rest for found, rest in dockerfile() if found == word]


def image_environment():
    return dict(pair.split("=", 1) for line in instructions("ENV") for pair in shlex.split(line))


def filled(text, operator):
    """`text` with `${NAME}`, `${NAME:-default}` and `${NAME:?message}` filled in as compose would."""

    def value(match):
        given = operator.get(match["name"], "")
        if not given and match["how"] == ":?":
            raise LookupError(match["rest"])
        return given or match["rest"] or ""

    return re.sub(r"\$\{(?P<name>\w+)(?:(?P<how>:[-?])(?P<rest>[^}]*))?\}", value, text)


def settings_of_the_stack(**operator):
    given = {name: filled(text, OPERATOR | operator) for name, text in SERVICES["waybill"]["environment"].items()}
    return load({**image_environment(), **given}, NO_ENV_FILE)


def directives(name):
    """The arguments of every use of one nginx directive."""
    return [
        shlex.split(rest) for rest in re.findall(rf"^\s*{name}\s+([^;{{]*);", CONFIGURATION.read_text(), re.MULTILINE)
    ]


def statements(file):
    """What a file of nginx says, a statement or the beginning of a block at a time, without comments."""
    text = re.sub(r"(^|\s)#.*$", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = re.findall(r"((?:'[^']*'|\"[^\"]*\"|\(\?[^\s]*|[^;{}'\"])+)[;{]", text)
    return [" ".join(part.split()) for part in parts]


def seconds(text):
    return int(text[:-1]) * {"s": 1, "m": 60, "h": 3600}[text[-1]]


class TestSettings:
    def test_every_variable_of_the_image_and_of_the_stack_is_understood(self):
        assert load(image_environment(), NO_ENV_FILE).storage_dir == Path("/data")
        settings = settings_of_the_stack()
        assert settings.database_url.get_secret_value().startswith("postgresql://")
        assert all(name.startswith("WAYBILL_") for name in SERVICES["waybill"]["environment"])

    def test_keys_come_from_the_operator_or_are_made_in_the_volume(self):
        assert settings_of_the_stack().secret_keys == ()
        assert len(settings_of_the_stack(WAYBILL_SECRET_KEYS=f"{'a' * 32},{'b' * 32}").secret_keys) == 2

    def test_the_example_names_settings_that_exist_and_chooses_nothing(self, tmp_path):
        example = (ROOT / ".env.example").read_text(encoding="utf-8")
        (tmp_path / ".env").write_text(example.replace("#WAYBILL_", "WAYBILL_"))
        assert load({}, tmp_path / ".env") == load({}, NO_ENV_FILE)
        wanted = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
        assert set(re.findall(r"^#?(\w+)=$", example, re.MULTILINE)) == wanted

    def test_interim_responses_are_turned_off_behind_the_proxy(self):
        assert settings_of_the_stack().interim_responses is False

    def test_no_password_stands_in_the_repository(self):
        for text in [SERVICES["waybill"]["environment"]["WAYBILL_DATABASE_URL"],
                     SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]]:  # fmt: skip
            with pytest.raises(LookupError, match="choose one"):
                filled(text, {})

    def test_the_service_reaches_the_database_of_the_stack(self):
        given = {name: filled(text, OPERATOR) for name, text in SERVICES["postgres"]["environment"].items()}
        assert settings_of_the_stack().database_url.get_secret_value() == (
            f"postgresql://{given['POSTGRES_USER']}:{given['POSTGRES_PASSWORD']}@postgres:5432/{given['POSTGRES_DB']}"
        )


class TestNetwork:
    def test_the_ports_agree(self):
        settings = settings_of_the_stack()
        assert settings.host == "0.0.0.0"
        assert instructions("EXPOSE") == [str(settings.port)]
        assert directives("server") == [[f"waybill:{settings.port}", "max_fails=0"]]
        [[listened]] = directives("listen")
        assert SERVICES["proxy"]["ports"] == [f"127.0.0.1:8080:{listened}"]

    def test_only_the_proxy_can_be_reached_from_outside(self):
        assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
        assert SERVICES["postgres"]["networks"] == ["back"]
        assert SERVICES["proxy"]["networks"] == ["front"]
        assert COMPOSE["networks"]["back"] == {"internal": True}
        assert all("network_mode" not in service for service in SERVICES.values())

    def test_the_network_of_the_proxy_and_nothing_more_is_believed(self):
        [believed] = settings_of_the_stack().trusted_proxies
        assert COMPOSE["networks"]["front"]["ipam"]["config"] == [{"subnet": believed}]
        assert ip_network(believed).is_private


class TestWritableFiles:
    def test_the_service_writes_to_its_volume_alone(self):
        service, storage_dir = SERVICES["waybill"], str(settings_of_the_stack().storage_dir)
        assert service["read_only"] is True
        assert instructions("VOLUME") == [[storage_dir]]
        assert service["volumes"] == [f"uploads:{storage_dir}"]

    def test_lasting_data_lies_in_volumes(self):
        mounts = [mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", [])]
        named = [source for source in mounts if not source.startswith(".")]
        assert sorted(named) == sorted(COMPOSE["volumes"])

    def test_the_proxy_writes_to_memory_alone(self):
        assert SERVICES["proxy"]["read_only"] is True
        assert SERVICES["proxy"]["tmpfs"] == "/tmp"
        written = [path for name in ("pid", r"\w+_temp_path") for [path] in directives(name)]
        assert len(written) == 6
        assert all(path.startswith("/tmp/") for path in written)

    def test_no_service_runs_as_root(self):
        assert int(instructions("USER")[-1].partition(":")[0]) > 0
        assert int(SERVICES["proxy"]["user"].partition(":")[0]) > 0
        assert "user" not in SERVICES["waybill"]

    def test_mounted_files_are_in_the_repository(self):
        assert [mount.split(":")[0] for mount in SERVICES["proxy"]["volumes"]] == ["./deploy/nginx.conf"]
        assert CONFIGURATION == ROOT / "deploy" / "nginx.conf"


class TestStartingAndStopping:
    def test_each_service_waits_until_its_dependencies_are_ready(self):
        assert SERVICES["waybill"]["depends_on"]["postgres"]["condition"] == "service_healthy"
        assert SERVICES["proxy"]["depends_on"]["waybill"]["condition"] == "service_healthy"
        assert "--host=127.0.0.1" in SERVICES["postgres"]["healthcheck"]["test"]

    def test_uploads_may_end_before_the_process_is_killed(self):
        grace = timedelta(seconds=seconds(SERVICES["waybill"]["stop_grace_period"]))
        assert grace >= settings_of_the_stack().shutdown_timeout + timedelta(seconds=10)

    def test_the_database_keeps_what_it_confirmed(self):
        assert SERVICES["postgres"].keys().isdisjoint({"command", "entrypoint", "tmpfs"})
        assert SERVICES["postgres"]["environment"].keys() == {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}

    @pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (404, False)])
    def test_the_health_check_asks_the_service_whether_it_is_ready(self, status, healthy):
        asked = []

        class Service(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
            serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            serving.start()
            code = self.health_check(server.server_port)
            server.shutdown()
            serving.join()
        assert asked == ["/health/ready"]
        assert (code == 0) is healthy

    def test_the_health_check_fails_where_nothing_answers(self):
        with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler, bind_and_activate=False) as unused:
            unused.server_bind()  # taken, and not listened on
            assert self.health_check(unused.server_port) != 0

    def health_check(self, port):
        [(_, command)] = [re.fullmatch(r"(.*?) ?CMD (\[.*\])", line).groups() for line in instructions("HEALTHCHECK")]
        python, *arguments = json.loads(command)
        assert python == "python"
        environ = {**os.environ, "WAYBILL_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
        return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, timeout=30).returncode


class TestProxy:
    def test_nginx_accepts_the_configuration(self, tmp_path):
        checked = subprocess.run(
            [tool("nginx"), "-t", "-q", "-p", tmp_path, "-c", localised(tmp_path, 8080, 8000)],
            capture_output=True,
            text=True,
        )
        assert (checked.returncode, checked.stderr) == (0, "")

    def test_the_file_for_a_host_says_the_same(self):
        """But for where things are, and what Debian's main file says around it."""
        here, there = statements(CONFIGURATION), statements(DEPLOY / "nginx-site.conf")
        places = {"listen", "server", "server_name", "access_log", "error_log"}
        of_the_host = {"gzip off"}
        begin = next(at for at, statement in enumerate(here) if statement.startswith("map "))
        end = next(at for at, statement in enumerate(here) if statement.startswith("upstream "))
        around = {"server_tokens off", *(s for s in here[begin:end] if s.split()[0].endswith("_temp_path"))}

        def alike(found):
            return [s for s in found if s.split()[0] not in places and s not in around | of_the_host]

        assert alike(here[begin:]) == alike(there)
        assert "gzip off" in there

    def test_the_proxy_keeps_nothing_on_disk_and_limits_no_size(self):
        assert directives("proxy_request_buffering") == [["off"]]
        assert directives("proxy_max_temp_file_size") == [["0"]]
        assert directives("client_max_body_size") == [["0"]]
        assert directives("proxy_http_version") == [["1.1"]]

    def test_the_proxy_is_more_patient_than_the_service(self):
        for name in ["client_body_timeout", "send_timeout", "proxy_read_timeout", "proxy_send_timeout"]:
            [[patience]] = directives(name)
            assert seconds(patience) >= 300

    async def test_an_upload_reaches_the_service_while_it_arrives(self, proxy):
        first_half_arrived = asyncio.Event()

        async def service(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"half")
            first_half_arrived.set()
            await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

        async with answering(service) as port, connected(proxy(port)) as (reader, writer):
            writer.write(b"POST /api/ingestion/uploads HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"4\r\nhalf\r\n")
            await first_half_arrived.wait()
            writer.write(b"5\r\nwhole\r\n0\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 201 ")

    async def test_a_refusal_reaches_the_client_before_the_body_has_ended(self, proxy):
        async def service(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 7\r\nConnection: close\r\n\r\nrefused")
            await reader.read()

        async with answering(service) as port, connected(proxy(port)) as (reader, writer):
            writer.write(b"PUT /api/ingestion/uploads/a HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
            assert (await reader.readuntil(b"refused")).endswith(b"refused")

    async def test_the_service_learns_who_asked_and_how_and_believes_no_client(self, proxy):
        heads = asyncio.Queue()

        async def service(reader, writer):
            heads.put_nowait(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

        async with answering(service) as port, connected(proxy(port)) as (reader, writer):
            writer.write(
                b"GET /api/ingestion/uploads/a%2Fb%20c//?q=%2e HTTP/1.1\r\nHost: files.example:8080\r\n"
                b"X-Forwarded-For: 10.1.2.3\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n"
                b"Forwarded: for=10.1.2.3;proto=https\r\n\r\n"
            )
            assert (await reader.readline()).startswith(b"HTTP/1.1 204 ")
            request, *lines = (await heads.get()).decode().split("\r\n")
        headers = sorted(
            line.lower() for line in lines if line.lower().startswith(("host", "x-forwarded", "forwarded"))
        )
        assert request == "GET /api/ingestion/uploads/a%2Fb%20c//?q=%2e HTTP/1.1"
        assert headers == [
            "host: files.example:8080",
            "x-forwarded-for: 127.0.0.1",
            "x-forwarded-host: files.example:8080",
            "x-forwarded-proto: http",
        ]

    async def test_a_service_that_is_away_is_answered_by_a_problem(self, proxy):
        async with answering(None) as port:
            pass  # nothing listens there any more
        async with connected(proxy(port)) as (reader, writer):
            writer.write(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            head, body = (await reader.read()).decode().split("\r\n\r\n")
        assert head.startswith("HTTP/1.1 503 ")
        assert "Content-Type: application/problem+json" in head
        assert "Retry-After: 2" in head
        problem, away = json.loads(body), Unavailable()
        assert re.fullmatch(r"[0-9a-f]{32}", problem.pop("request_id"))
        assert problem == {
            "type": f"urn:waybill:problem:{away.code}",
            "title": away.title,
            "status": away.status,
            "detail": str(away),
            "code": away.code,
        }


class TestImage:
    def test_the_image_starts_a_command_of_the_package(self):
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
        assert instructions("CMD") == [["waybill", "serve"]]
        assert "waybill" in scripts

    def test_the_image_is_built_on_the_newest_supported_interpreter(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        oldest, *_, newest = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
        assert project["requires-python"] == f">={oldest}"
        assert {line.split()[0] for line in instructions("FROM")} == {f"python:{newest}-slim-bookworm"}

    @pytest.mark.slow
    def test_the_install_steps_of_the_image_give_a_service_that_starts(self, tmp_path):
        """The steps of the first stage run here, on what the engine would see of this directory.

        Dependencies are taken from the environment of the tests, which holds the same versions: that they
        can be installed, the making of that environment has shown.
        """
        prefix, source, libraries = tmp_path / "prefix", tmp_path / "src", sysconfig.get_path("purelib")
        path = os.pathsep.join([str(prefix / "bin"), str(Path(sys.executable).parent), search_path()])
        environ = {"PATH": path, "HOME": str(tmp_path), "PYTHONPATH": libraries}
        building = environ | {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        stage = list(dockerfile())
        stage = stage[: [word for word, _ in stage].index("FROM", 1)]
        source.mkdir()
        for word, rest in stage:
            if word == "COPY":
                *files, target = rest.split()
                for file in files:
                    copy_as_the_engine_would(file, source / target)
            elif word == "RUN":
                step = rest.replace("/opt/waybill", str(prefix))
                subprocess.run(["/bin/sh", "-ec", step], cwd=source, env=building, check=True, timeout=120)
        shutil.rmtree(source)  # what the service needs is in the prefix

        def said_by(*command):
            ended = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout

        where = (
            "import app, app.db.queries as q; print(app.__file__, q.folder(), *q.folder().rglob('*.sql'), sep='\\n')"
        )
        package, folder, *files = map(Path, said_by(prefix / "bin" / "python", "-c", where).splitlines())
        assert package.is_relative_to(prefix)
        assert folder.is_relative_to(prefix)
        statements = {path.relative_to(ROOT / "sql") for path in (ROOT / "sql").rglob("*.sql")}
        assert {path.relative_to(folder) for path in files} == statements
        assert "Usage:" in said_by(*instructions("CMD")[0], "--help")


def copy_as_the_engine_would(name, target):
    """Copy one file or folder of the repository, without what .dockerignore keeps from the engine."""

    def left_out(folder, names):
        return [name for name in names if ignored((Path(folder) / name).relative_to(ROOT))]

    assert not ignored(Path(name)), f".dockerignore keeps {name} from the image"
    if (ROOT / name).is_dir():
        shutil.copytree(ROOT / name, target, ignore=left_out, dirs_exist_ok=True)
    else:
        shutil.copy(ROOT / name, target)


def ignored(path):
    """Whether .dockerignore leaves out `path`: the last line that matches it, or a folder it is in, decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            pattern = line.removeprefix("!")
            anywhere = [step.name for step in (path, *path.parents)]
            from_here = [str(step) for step in (path, *path.parents)]
            if fnmatch.filter(anywhere if pattern.startswith("**/") else from_here, pattern.removeprefix("**/")):
                verdict = not line.startswith("!")
    return verdict


class TestConstraints:
    def pins(self):
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# ")
        return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines[1:])}

    def test_everything_that_is_installed_is_pinned(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pins, seen = self.pins(), set()
        pending = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["test"]]
        while pending:
            wanted = pending.pop()
            name = canonicalize_name(wanted.name)
            assert name in pins, f"{name} is not in constraints.txt: make constraints"
            assert wanted.specifier.contains(pins[name], prereleases=True), f"{wanted}, but {name} is {pins[name]}"
            for extra in {"", *wanted.extras}:
                if (name, extra) not in seen:
                    seen.add((name, extra))
                    pending += needed_by(name, extra)


def needed_by(name, extra):
    """What the installed distribution requires on this machine, for itself ("") or for one of its extras."""
    for requirement in map(Requirement, metadata.requires(name) or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement
