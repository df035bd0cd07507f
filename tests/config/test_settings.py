"""Settings: what is understood, what is refused, and how the operator is told."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.config import PREFIX, Settings, load
from app.errors import Unusable

KEY = "k" * 32
GiB = 1024**3


def refusals(environ, env_file=Path("/nonexistent/.env")):
    """The lines of the refusal, without its heading."""
    with pytest.raises(Unusable) as refused:
        load(environ, env_file)
    heading, *lines = str(refused.value).splitlines()
    assert heading == "configuration is not usable:"
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


def test_nothing_needs_to_be_set():
    settings = load({}, Path("/nonexistent/.env"))
    assert settings == Settings()
    assert settings.storage_dir == Path("waybill-data")
    assert settings.database_url.get_secret_value() == "sqlite:///waybill-data/waybill.db"
    assert (settings.host, settings.port, settings.durability) == ("127.0.0.1", 8000, "full")
    assert settings.max_file_size == 5 * GiB
    assert settings.max_request_size == 6 * GiB
    assert settings.session_max_age == timedelta(days=30)


UNDERSTOOD = [
    ("storage_dir", "/var/lib/waybill", Path("/var/lib/waybill")),
    ("storage_dir", "relative/with space", Path("relative/with space")),
    ("database_schema", "", ""),
    ("database_pool_size", "2", 2),
    ("durability", "fast", "fast"),
    ("min_free_space", "0", 0),
    ("sweep_interval", "1500ms", timedelta(seconds=1.5)),
    ("sweep_interval", "90s", timedelta(seconds=90)),
    ("sweep_interval", "10min", timedelta(minutes=10)),
    ("scrub_rate", "0", 0),
    ("scrub_rate", "16MiB", 16 * 2**20),
    ("session_max_age", "12h", timedelta(hours=12)),
    ("session_max_age", "36500d", timedelta(days=36500)),
    ("max_file_size", "1", 1),
    ("max_file_size", "10MiB", 10 * 1024**2),
    ("max_file_size", "10MB", 10_000_000),
    ("max_file_size", "3KiB", 3072),
    ("max_file_size", "2TB", 2 * 10**12),
    ("max_file_size", "9223372036854775807", 2**63 - 1),
    ("max_request_size", "7GiB", 7 * GiB),
    ("max_files_per_request", "1", 1),
    ("max_zip_files", "1", 1),
    ("link_max_age", "7d", timedelta(days=7)),
    ("max_concurrent_uploads", "17", 17),
    ("min_upload_rate", "0", 0),
    ("min_upload_rate", "64KB", 64_000),
    ("upload_idle_time", "1h", timedelta(hours=1)),
    ("upload_max_time", "1d", timedelta(days=1)),
    ("max_connections", "100", 100),
    ("retain_failed", "7d", timedelta(days=7)),
    ("session_concurrent_uploads", "0", 0),
    ("session_concurrent_uploads", "16", 16),
    ("session_quota", "0", 0),
    ("session_quota", "10GiB", 10 * 1024**3),
    ("session_quota_uploads", "100000", 100_000),
    ("request_timeout", "2h", timedelta(hours=2)),
    ("interop_versions", "", ()),
    ("interop_versions", "6, 10", (6, 10)),
    ("interop_versions", '["11"]', (11,)),
    ("interim_responses", "false", False),
    ("upload_url_needs_session", "true", True),
    ("upload_url_needs_session", "false", False),
    ("secure_cookies", "always", "always"),
    ("allowed_origins", "", ()),
    ("allowed_origins", "https://example.com", ("https://example.com",)),
    ("allowed_origins", "https://a.example, http://localhost:3000", ("https://a.example", "http://localhost:3000")),
    ("allowed_origins", '["http://127.0.0.1:8080", "https://[::1]:8443"]', ("http://127.0.0.1:8080", "https://[::1]:8443")),
    ("allowed_origins", "capacitor://localhost", ("capacitor://localhost",)),
    ("allowed_origins", "moz-extension://0f1e-2d,chrome-extension://abcd", ("moz-extension://0f1e-2d", "chrome-extension://abcd")),
    ("trusted_proxies", "", ()),
    ("trusted_proxies", "*", ("*",)),
    ("trusted_proxies", "10.0.0.0/8, ::1,192.168.1.7", ("10.0.0.0/8", "::1", "192.168.1.7")),
    ("host", "0.0.0.0", "0.0.0.0"),
    ("host", "::", "::"),
    ("host", "upload-1.example.com", "upload-1.example.com"),
    ("trusted_proxies", "unix,10.0.0.1", ("unix", "10.0.0.1")),
    ("port", "0", 0),
    ("port", "65535", 65535),
    ("listen", "unix:/run/waybill.sock", "unix:/run/waybill.sock"),
    ("base_path", "", ""),
    ("base_path", "/files/up-loads", "/files/up-loads"),
    ("listen", "fd:3", "fd:3"),
    ("listen", "systemd", "systemd"),
    ("workers", "4", 4),
    ("shutdown_timeout", "1s", timedelta(seconds=1)),
    ("log_format", "json", "json"),
    ("log_level", "warning", "warning"),
    ("title", "Müller & Söhne", "Müller & Söhne"),
    ("logo", "/etc/waybill/logo.svg", Path("/etc/waybill/logo.svg")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), UNDERSTOOD)
def test_a_value_is_understood(name, text, value):
    assert getattr(load({PREFIX + name.upper(): text}), name) == value


REFUSED = [
    ("storage_dir", ["", " ", "~/uploads", " /srv", "/srv\n", "a\0b", "/srv/\udcff"], "expected a path"),
    ("database_schema", ["Waybill", "way-bill", '"waybill"', "pg_waybill", "1a", "a" * 64, "a\n"], "expected a name"),
    ("database_schema", ["waybill"], "expected none with sqlite"),
    ("database_pool_size", ["", "1", "8.0", "8_0", " 8", "+8", "08", "0x8", "٨", "1001"], "expected a whole number"),
    ("durability", ["", "Full", "none"], "expected full or fast"),
    ("min_free_space", ["", "-1", "1.5GiB", "512 MiB", "512mib", "512M", "512Mb", "1e3"], "expected a size, or"),
    ("sweep_interval", ["", "0s", "999ms", "10", "10m", "10 min", "1h30min", "-5s", "1.5h"], "expected a duration"),
    ("session_max_age", ["36501d", "9999999999999999999d", "30D", "1w", "forever"], "expected a duration"),
    ("max_file_size", ["0", "-1", "9223372036854775808", "9" * 19 + "TiB", "9" * 5000], "expected a size above 0"),
    ("max_request_size", ["0", "5GB", "1KiB"], "expected"),
    ("max_files_per_request", ["0", "many"], "expected a whole number from 1"),
    ("link_max_age", ["0s", "7", "never"], "expected a duration"),
    ("max_zip_files", ["0", "1000001"], "expected a whole number from 1"),
    ("max_concurrent_uploads", ["0", "4e3"], "expected a whole number from 1"),
    ("max_connections", ["0", "many"], "expected a whole number from 1"),
    ("retain_failed", ["0s", "90", "ever"], "expected a duration"),
    ("session_concurrent_uploads", ["-1", "none"], "expected a whole number from 0"),
    ("session_quota", ["-1", "10gb", "unlimited"], "expected a size, or 0"),
    ("session_quota_uploads", ["-1", "1.5"], "expected a whole number from 0"),
    ("request_timeout", ["0s", "3600"], "expected a duration"),
    ("min_upload_rate", ["1KiB/s", "slow"], "expected a size, or 0"),
    ("scrub_rate", ["4MiB/s", "-1"], "expected a size, or 0"),
    ("upload_idle_time", ["1", "0s", "8d1h"], "expected a duration"),
    ("upload_max_time", ["1h", "ever"], "expected"),
    ("interop_versions", ["4", "latest", "6;10", "100", "6,,10", "06", "6KiB", "[6]", "-6"], "expected"),
    ("interim_responses", ["off"], "expected true or false"),
    ("upload_url_needs_session", ["", "True", "1", "yes"], "expected true or false"),
    ("secure_cookies", ["true", "never"], "expected auto or always"),
    (
        "allowed_origins",
        ["*", "null", "example.com", "https://example.com/", "https://Example.com", "https://example.com:443",
         "http://a:80", "http://a:0", "http://a:65536", "ftp://a", "file://a", "app://a/", "app://A", "app://a:1",
         "https://u@a", "https://a?b", "https://a,,https://b",
         "https://[::0001]", "https://256.0.0.1", "https://-a", '["https://a"', '["https://a", 1]', "[" * 20_000],
        "expected",
    ),
    ("trusted_proxies", ["*,10.0.0.1", "10.0.0.1/8", "proxy", "10.0.0.0/33", "10.0.0.1,", "{}", "[1]"], "expected"),
    ("host", ["", "127.0.0.1:8000", "http://localhost", "[::1]", "a b", "256.0.0.1", "a..b"], "expected an address"),
    ("port", ["", "-1", "65536", "http", "tcp://10.0.0.1:8000"], "expected a whole number from 0 to 65535"),
    ("base_path", ["/", "uploads", "/uploads/", "/a//b", "/..", "/a/../b", "/a b", "/é", "/a%20b", "/a?b"],
     "expected a path"),
    ("listen", ["/run/waybill.sock", "unix:", "fd:", "fd:-1", "fd:x", "unix:/a\n", "tcp:1", "unix:/" + "x" * 101],
     "expected unix:"),
    ("workers", ["0", "two"], "expected a whole number from 1"),
    ("shutdown_timeout", ["30", "0s"], "expected a duration"),
    ("log_format", ["JSON", "xml"], "expected text or json"),
    ("log_level", ["INFO", "trace"], "expected debug or info"),
    ("title", ["", " Waybill", "a\nb", "a\u202eb", "x" * 101], "expected 1 to 100 printable characters"),
    ("logo", ["", "~/logo.svg", " /srv/logo.svg", "/srv/\udcff"], "expected a path"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "expected"), [(n, text, e) for n, texts, e in REFUSED for text in texts])
def test_a_value_is_refused_with_its_name_what_was_found_and_what_was_expected(name, text, expected):
    variable = PREFIX + name.upper()
    [line] = refusals({variable: text})
    shown = repr(text) if len(text) <= 80 else repr(text[:80]) + "…"
    assert line.startswith(f"{variable} is {shown}, ")
    assert expected in line
    assert len(line) < 400


@pytest.mark.parametrize("beside", [{"HOST": "127.0.0.1"}, {"PORT": "80"}, {"HOST": "::", "PORT": "80"}])
def test_a_service_listens_at_one_kind_of_place(beside):
    with pytest.raises(Unusable, match="WAYBILL_LISTEN stands beside WAYBILL_"):
        load({f"{PREFIX}LISTEN": "systemd", **{PREFIX + name: value for name, value in beside.items()}})


def test_a_schema_is_understood_with_postgresql():
    given = {"WAYBILL_DATABASE_URL": "postgresql://a/b", "WAYBILL_DATABASE_SCHEMA": "way_bill2"}
    assert load(given).database_schema == "way_bill2"


def test_every_setting_has_cases_here():
    assert {name for name, _, _ in UNDERSTOOD} | {"database_url", "secret_keys"} == set(Settings.model_fields)
    assert {name for name, _, _ in REFUSED} | {"database_url", "secret_keys"} == set(Settings.model_fields)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///waybill.db",
        "sqlite:////var/lib/waybill/waybill.db",
        "sqlite:///with%20space%3F.db",
        "postgresql://localhost/waybill",
        "postgresql://waybill:100%25@db.example:5433/waybill?ssl=verify-full",
        "postgresql://waybill:p%2Fw@[::1]/waybill",
        "postgresql://postgres:@/postgres?host=/run/postgresql",
        "postgresql://@:5433/postgres?host=/run/postgresql",
        "postgresql://waybill@%2Frun%2Fpostgresql/waybill",
        "postgresql://waybill@a.example:5432,b.example:5433/waybill?target_session_attrs=read-write",
        "postgresql://waybill@[::1]:5432,b.example/waybill?ssl=require",
        "postgresql://waybill@/waybill?host=a.example,b.example&port=5432,5433&target_session_attrs=primary",
    ],
)
def test_a_database_url_is_kept_as_it_is_written(url):
    assert load({"WAYBILL_DATABASE_URL": url}).database_url.get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is empty"),
        ("mysql://u:tulip@h/d", "the scheme is 'mysql'"),
        ("postgres://u:tulip@h/d", "the scheme is 'postgres'"),
        ("postgresql+asyncpg://u:tulip@h/d", "the scheme is 'postgresql+asyncpg'"),
        ("sqlite://tulip.db", "the scheme is 'sqlite'"),
        ("SQLITE:///tulip.db", "the scheme is 'SQLITE'"),
        ("tulip", "there is no scheme"),
        ("u:tulip@h/d", "there is no scheme"),
        ("sqlite:///", "names no file"),
        ("sqlite:///tulip/", "names no file"),
        ("sqlite:///:memory:", "keeps nothing"),
        ("sqlite:///%3Amemory%3A", "keeps nothing"),
        ("sqlite:///file:tulip?mode=memory", "has options"),
        ("sqlite:///file:tulip", "a second URL"),
        ("sqlite:///tulip.db?", "has options"),
        ("sqlite:///tulip.db?timeout=5", "has options"),
        ("sqlite:///tulip%00.db", "not a well-formed URL"),
        ("sqlite:///tulip%ff.db", "not a well-formed URL"),
        ("sqlite:///tulip#.db", "a # in it"),
        (" postgresql://u:tulip@h/d", "has a space"),
        ("postgresql://u:tulip@h/d\n", "has a space"),
        ("postgresql://u:tulip#x@h/d", "a # in it"),
        ("postgresql://u:tul/ip@h/d", "not a well-formed URL"),
        ("postgresql://u:tul?ip@h/d", "not a well-formed URL"),
        ("postgresql://tul?ip@h/d", "has options"),
        ("postgresql://u:tulip@h:tulip/d", "not a well-formed URL"),
        ("postgresql://u:tulip@h:0/d", "not a well-formed URL"),
        ("postgresql://u:tulip@[h/d", "not a well-formed URL"),
        ("postgresql://u:tulip@h", "names no database"),
        ("postgresql://u:tulip@h/", "names no database"),
        ("postgresql://u:tulip@/d", "names no host"),
        ("postgresql://u:tulip@h/d?host=/run", "names hosts in two places"),
        ("postgresql://u:tulip@h,/d", "names no host, or an empty one"),
        ("postgresql://u:tulip@/d?host=h,", "names no host, or an empty one"),
        ("postgresql://u:tulip@h/d?port=5433", "has a port without a host"),
        ("postgresql://u:tulip@/d?host=g,h,i&port=1,2", "another number of ports"),
        ("postgresql://u:tulip@:1/d?host=h&port=1", "another number of ports"),
        ("postgresql://u:tulip@/d?host=h&port=tulip", "not a well-formed URL"),
        ("postgresql://u:tulip@h,g/d?target_session_attrs=standby", "do not suit a service that writes"),
        ("postgresql://u:tulip@h/d?sslmode=require", "has options that are not understood"),
        ("postgresql://u:tulip@h/d?min_size=1", "DATABASE_POOL_SIZE"),
        ("postgresql://u:tulip@h/d?ssl=true&ssl=false", "each once"),
        ("postgresql://u:tulip@h/d?ssl=", "ssl mode"),
        ("postgresql://u:tulip@h/d?ssl=tulip", "ssl mode"),
        ("postgresql://u:tulip\udcff@h/d", "control character"),
    ],
)
def test_a_database_url_is_refused_without_repeating_it(url, said):
    [line] = refusals({"WAYBILL_DATABASE_URL": url})
    assert line.startswith("WAYBILL_DATABASE_URL: ")
    assert said in line
    assert "expected" in line
    assert "tul" not in line


def test_the_database_lies_in_the_storage_directory_whatever_that_is_called():
    settings = load({"WAYBILL_STORAGE_DIR": "/srv/50% of? #1"})
    assert settings.database_url.get_secret_value() == "sqlite:////srv/50%25%20of%3F%20%231/waybill.db"
    assert load({"WAYBILL_DATABASE_URL": settings.database_url.get_secret_value()})


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("", ()),
        (KEY, (KEY,)),
        (f"{KEY}, {KEY.upper()}", (KEY, KEY.upper())),
        (f'["{KEY},{KEY}"]', (f"{KEY},{KEY}",)),
        ("ü" * 32, ("ü" * 32,)),
    ],
)
def test_keys_are_understood(text, keys):
    assert tuple(key.get_secret_value() for key in load({"WAYBILL_SECRET_KEYS": text}).secret_keys) == keys


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tulip", "the first key has 5 characters, needs 32 or more"),
        (
            f"{KEY},tulip,",
            "the second key has 5 characters, needs 32 or more; the third key has 0 characters, needs 32 or more",
        ),
        (f"{KEY},{KEY},{KEY},tulip", "the 4th key has 5 characters, needs 32 or more"),
        ('["tulip"', "expected a JSON list after the opening bracket"),
        ("[1]", "expected a list of texts"),
        ("[" * 20_000, "expected a JSON list after the opening bracket"),
        (f"{KEY}\udcff", "the first key is not UTF-8 text"),
    ],
)
def test_keys_are_refused_without_repeating_them(text, said):
    assert refusals({"WAYBILL_SECRET_KEYS": text}) == [f"WAYBILL_SECRET_KEYS: {said}"]


def test_all_problems_are_reported_together():
    lines = refusals(
        {"WAYBILL_MAX_FILE_SIZE": "-1", "WAYBILL_SECRET_KEYS": "abcde", "WAYBILL_PORT": "http", "WAYBILL_HOST": "::"}
    )
    assert lines == [
        "WAYBILL_MAX_FILE_SIZE is '-1', expected a size above 0, such as 10MiB, 10MB or a plain number of bytes",
        "WAYBILL_SECRET_KEYS: the first key has 5 characters, needs 32 or more",
        "WAYBILL_PORT is 'http', expected a whole number from 0 to 65535",
    ]


def test_the_largest_request_follows_the_largest_file():
    assert load({"WAYBILL_MAX_FILE_SIZE": "50GiB"}).max_request_size == 51 * GiB
    assert load({"WAYBILL_MAX_FILE_SIZE": str(2**63 - 1)}).max_request_size == 2**63 - 1
    assert load({"WAYBILL_MAX_FILE_SIZE": "1MiB", "WAYBILL_MAX_REQUEST_SIZE": "1MiB"}).max_request_size == 1024**2
    [line] = refusals({"WAYBILL_MAX_FILE_SIZE": "1MiB", "WAYBILL_MAX_REQUEST_SIZE": "1MB"})
    assert line == "WAYBILL_MAX_REQUEST_SIZE is '1MB', expected no less than WAYBILL_MAX_FILE_SIZE, 1048576 bytes"


def test_an_upload_may_not_be_idle_for_longer_than_it_may_be():
    settings = load({"WAYBILL_UPLOAD_IDLE_TIME": "7d", "WAYBILL_UPLOAD_MAX_TIME": "7d"})
    assert settings.upload_idle_time == settings.upload_max_time
    assert refusals({"WAYBILL_UPLOAD_IDLE_TIME": "8d", "WAYBILL_UPLOAD_MAX_TIME": "7d"}) == [
        "WAYBILL_UPLOAD_MAX_TIME is '7d', expected no less than WAYBILL_UPLOAD_IDLE_TIME"
    ]
    assert load({"WAYBILL_UPLOAD_IDLE_TIME": "8d"}).upload_max_time == timedelta(days=8)
    assert Settings().upload_max_time == timedelta(days=7)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("WAYBILL_SECRET_KEY", "WAYBILL_SECRET_KEY is not a setting; did you mean WAYBILL_SECRET_KEYS?"),
        ("waybill_port", "waybill_port is not a setting; did you mean WAYBILL_PORT?"),
        ("WAYBILL_COLOUR_OF_THE_SEA", "WAYBILL_COLOUR_OF_THE_SEA is not a setting"),
        ("WAYBILL_", "WAYBILL_ is not a setting"),
        ("WAYBILL_A\nB\udcff", "WAYBILL_A\\nB\\udcff is not a setting"),
    ],
)
def test_an_unknown_variable_is_refused_and_its_value_kept_back(name, line):
    assert refusals({name: "tulip", "WAY": "1", "PORT": "2"}) == [line]


def test_the_variables_of_the_client_are_passed_over():
    given = {"WAYBILL_URL": "https://uploads.example", "WAYBILL_TOKEN": "x", "WAYBILL_PORT": "9000"}
    assert load(given, Path("/nonexistent/.env")).port == 9000


class TestEnvFile:
    @pytest.fixture
    def env_file(self, tmp_path):
        return tmp_path / ".env"

    def test_the_env_file_is_read_and_the_environment_wins(self, env_file):
        env_file.write_text(
            '\ufeff# The copy on this desk.\n\nexport WAYBILL_PORT=9000\nWAYBILL_HOST="::1"  # here only\nOTHER=1\n'
        )
        settings = load({"WAYBILL_PORT": "9001"}, env_file)
        assert (settings.port, settings.host) == (9001, "::1")

    def test_a_dollar_in_the_env_file_is_a_character(self, env_file):
        env_file.write_text(f"WAYBILL_SECRET_KEYS='{'${HOME}$$' * 4}'\n")
        [key] = load({"HOME": "/root"}, env_file).secret_keys
        assert key.get_secret_value() == "${HOME}$$" * 4

    def test_the_env_file_in_the_working_directory_is_the_default(self, env_file, monkeypatch):
        env_file.write_text("WAYBILL_PORT=9000\n")
        monkeypatch.chdir(env_file.parent)
        assert load({}).port == 9000
        assert Settings().port == 8000

    def test_errors_in_the_env_file_are_reported_with_the_others(self, env_file):
        env_file.write_text("\n\n'broken\nWAYBILL_WORKERS\nWAYBILL_PROT=tulip\nWAYBILL_DURABILITY=most\nPLAIN\n")
        assert refusals({"WAYBILL_PORT": "x"}, env_file) == [
            f"{env_file}: line 3 cannot be understood, expected NAME=value",
            f"{env_file}: line 4 cannot be understood, expected NAME=value",
            "WAYBILL_DURABILITY is 'most', expected full or fast",
            "WAYBILL_PORT is 'x', expected a whole number from 0 to 65535",
            "WAYBILL_PROT is not a setting; did you mean WAYBILL_PORT?",
        ]

    def test_an_env_file_that_is_not_text_is_refused(self, env_file):
        env_file.write_bytes(b"WAYBILL_HOST=\xff\n")
        assert refusals({}, env_file) == [f"{env_file} is not UTF-8 text"]

    def test_an_env_file_that_cannot_be_opened_is_refused(self, env_file):
        env_file.symlink_to(env_file)
        [line] = refusals({}, env_file)
        assert line.startswith(f"{env_file} cannot be read: ")

    def test_a_directory_is_no_env_file(self, env_file):
        env_file.mkdir()
        assert load({}, env_file) == Settings()


class TestKeywords:
    def test_the_environment_of_the_machine_is_not_read(self, monkeypatch):
        monkeypatch.setenv("WAYBILL_PORT", "1")
        assert Settings(host="::1").port == 8000
        assert load().port == 1

    def test_values_of_the_right_kind_are_taken(self, tmp_path):
        settings = Settings(
            storage_dir=tmp_path, max_file_size=10, max_request_size=10, session_max_age=timedelta(hours=1), port=0
        )
        assert settings.database_url.get_secret_value() == f"sqlite:///{tmp_path}/waybill.db"
        assert Settings(**dict(settings)) == settings

    @pytest.mark.parametrize(
        "wrong", [{"port": True}, {"port": 1.0}, {"prot": 1}, {"session_max_age": 30}, {"PORT": 1}]
    )
    def test_values_of_another_kind_are_refused(self, wrong):
        with pytest.raises(ValidationError):
            Settings(**wrong)

    def test_settings_do_not_change(self):
        with pytest.raises(ValidationError):
            Settings().port = 1

    def test_secrets_are_not_printed(self):
        settings = Settings(secret_keys=[KEY], database_url="postgresql://u:tulip@h/d")
        shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
        with pytest.raises(ValidationError) as refused:
            Settings(secret_keys=["tulip"], database_url="postgresql://u:tulip@h/")
        assert "tulip" not in shown + str(refused.value) + repr(refused.value)
        assert KEY not in shown


def test_every_setting_says_what_it_is():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
