"""Property 7. An environment gives Settings or one refusal naming each bad setting, and nothing else."""

import re
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from app.config import PREFIX, Settings, load
from app.errors import Unusable

# Secrets are written in letters that no message uses, so a message that repeats any part of one shows it.
SECRET = "αβγδεζηθικλμνξοπρστυφχψω"
UNITS = {"": 1, "KB": 1000, "KiB": 1024, "MB": 1000**2, "MiB": 1024**2, "GB": 1000**3, "GiB": 1024**3}
SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}

secrets = st.text(SECRET, min_size=1, max_size=31)
long_secrets = st.text(SECRET, min_size=32, max_size=40)
sizes = st.builds(lambda n, unit: (f"{n}{unit}", n * UNITS[unit]), st.integers(1, 9999), st.sampled_from(sorted(UNITS)))
durations = st.builds(
    lambda n, unit: (f"{n}{unit}", timedelta(seconds=n * SECONDS[unit])),
    st.integers(1000, 9999),
    st.sampled_from(sorted(SECONDS)),
)
misshapen = st.sampled_from(["", " ", "-1", "1 ", "1.0", "1e3", "0x10", "1_0", "a b", "١", "\udcff", "1;2", "9" * 99])
paths = st.from_regex(r"/[a-z%?# é]{1,20}[a-z]", fullmatch=True)


def whole(least, most):
    return st.integers(least, most).map(lambda n: (str(n), n)), misshapen | st.integers(most + 1).map(str)


def words(*known):
    return st.sampled_from(known).map(lambda word: (word, word)), misshapen | st.sampled_from(known).map(str.title)


def lists(entries):
    return st.lists(entries, max_size=3).map(lambda chosen: (", ".join(chosen), tuple(chosen)))


# For each setting: texts with what they mean, and texts that mean nothing.
SIZE = sizes, misshapen | sizes.map(lambda pair: pair[0] + "s")
DURATION = durations, misshapen | st.sampled_from(["0s", "1m", "30", "36501d"])
BOOLEAN = (
    st.booleans().map(lambda value: (str(value).lower(), value)),
    misshapen | st.sampled_from(["yes", "True", "1"]),
)
SETTINGS = {
    "storage_dir": (paths.map(lambda path: (path, Path(path))), st.sampled_from(["", "~/a", " /a", "a\nb", "\udcff"])),
    "database_url": (
        st.builds("postgresql://waybill:{}@db/{}".format, secrets, secrets).map(lambda url: (url, url)),
        st.builds(
            lambda shape, secret: shape.format(secret),
            st.sampled_from(
                ["{}", "mysql://u:{}@h/d", "postgresql://u:{}/@h/d", "postgresql://u:{}?@h/d", "postgresql://u:{}#@h/d",
                 "postgresql://u:{}@h:{}/d", "postgresql://u:{}@h", "postgresql://u:{}@h/d?{}=1", "sqlite:///{}?x=1",
                 "sqlite:///{}/", "postgresql://u:%ff{}@h/d", "postgresql://u:{} @h/d"]
            ).map(lambda shape: shape.replace("{}", "{0}")),
            secrets,
        ),
    ),
    "secret_keys": (
        lists(long_secrets),
        st.builds(lambda short, long: f"{long},{short}", secrets, long_secrets) | secrets | secrets.map("[{}".format),
    ),
    "database_schema": (
        st.sampled_from(["waybill", "_1"]).map(lambda text: (text, text)),
        st.sampled_from([" ", "Waybill", "pg_a", "1a", "a.b", "é"]),
    ),
    "database_pool_size": whole(2, 1000),
    "durability": words("full", "fast"),
    "min_free_space": SIZE,
    "sweep_interval": DURATION,
    "max_file_size": SIZE,
    "max_request_size": SIZE,
    "max_files_per_request": whole(1, 100_000),
    "max_zip_files": whole(1, 1_000_000),
    "link_max_age": DURATION,
    "max_concurrent_uploads": whole(1, 1_000_000),
    "max_connections": whole(1, 1_000_000),
    "session_concurrent_uploads": whole(0, 1_000_000),
    "session_quota": SIZE,
    "session_quota_uploads": whole(0, 2**53),
    "request_timeout": DURATION,
    "min_upload_rate": SIZE,
    "scrub_rate": SIZE,
    "upload_idle_time": DURATION,
    "upload_max_time": DURATION,
    "interop_versions": (
        st.lists(st.integers(5, 99), max_size=3).map(lambda chosen: (", ".join(map(str, chosen)), tuple(chosen))),
        st.sampled_from(["4", "100", "6,", "6;10", "x", "[6]", "06", "-6"]),
    ),
    "interim_responses": BOOLEAN,
    "upload_url_needs_session": BOOLEAN,
    "session_max_age": DURATION,
    "secure_cookies": words("auto", "always"),
    "allowed_origins": (
        lists(st.sampled_from(["https://a.example", "http://localhost:3000", "http://[::1]:8080"])),
        st.sampled_from(["*", "https://a/", "https://a:443", "a", ",", "HTTPS://a", "[", "\udcff"]),
    ),
    "trusted_proxies": (
        lists(st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6, network="2001:db8::/32").map(str)),
        st.sampled_from(["*,::1", "10.0.0.1/8", "a", ",", "[1]", "\udcff"]),
    ),
    "host": (st.ip_addresses().map(lambda ip: (str(ip), str(ip))), misshapen | st.sampled_from(["a:1", "[::1]"])),
    "port": whole(0, 65_535),
    "retain_failed": DURATION,
    "title": (
        st.sampled_from(["Ümläut & Co", "a" * 100]).map(lambda text: (text, text)),
        st.sampled_from(["", " a", "a\n", "a" * 101, "\udcff", "a\u202eb"]),
    ),
    "logo": (
        paths.map(lambda path: (f"{path}.png", Path(f"{path}.png"))),
        st.sampled_from(["", "~/a.png", " /a.png", "\udcff"]),
    ),
    "base_path": (
        st.sampled_from(["/a", "/a/b.c"]).map(lambda text: (text, text)),
        st.sampled_from(["/", "a", "/a/", "/.."]),
    ),
    "listen": (
        st.sampled_from(["systemd", "fd:3", "unix:/run/a"]).map(lambda text: (text, text)),
        misshapen | st.sampled_from(["unix:", "fd:x"]),
    ),
    "workers": whole(1, 256),
    "shutdown_timeout": DURATION,
    "log_format": words("text", "json"),
    "log_level": words("debug", "info", "warning", "error", "critical"),
}  # fmt: skip


@st.composite
def environments(draw):
    """Variables, what the good ones mean, and the names of the bad ones."""
    environ, meant, bad = {"PATH": "/bin", "PORT": "x"}, {}, set()
    for name, (good, wrong) in SETTINGS.items():
        match draw(st.sampled_from(["absent", "good", "good", "bad"])):
            case "good":
                environ[PREFIX + name.upper()], meant[name] = draw(good)
            case "bad":
                environ[PREFIX + name.upper()] = draw(wrong)
                bad.add(PREFIX + name.upper())
    if f"{PREFIX}LISTEN" in environ:  # where it listens is said in one way alone
        for name in ("host", "port"):
            environ.pop(PREFIX + name.upper(), None), meant.pop(name, None), bad.discard(PREFIX + name.upper())
    for name in draw(st.lists(st.from_regex(r"WAYBILL_[A-Z_]{1,9}", fullmatch=True), max_size=2)):
        if name.removeprefix(PREFIX).lower() not in SETTINGS:
            environ[name] = draw(secrets)
            bad.add(name)
    largest = meant.get("max_file_size", 5 * 1024**3)
    if "WAYBILL_MAX_FILE_SIZE" not in bad and meant.get("max_request_size", largest) < largest:
        bad.add("WAYBILL_MAX_REQUEST_SIZE")
    if "database_schema" in meant and "WAYBILL_STORAGE_DIR" not in bad and "WAYBILL_DATABASE_URL" not in environ:
        bad.add("WAYBILL_DATABASE_SCHEMA")  # it is sqlite then
    idle = meant.get("upload_idle_time", timedelta(days=1))
    if "WAYBILL_UPLOAD_IDLE_TIME" not in bad and meant.get("upload_max_time", idle) < idle:
        bad.add("WAYBILL_UPLOAD_MAX_TIME")
    return environ, meant, bad


@given(environments())
def test_an_environment_gives_settings_or_one_refusal_that_names_each_bad_setting(drawn):
    environ, meant, bad = drawn
    settings, refusal = outcome(environ)
    if refusal:
        heading, *lines = refusal.split("\n")
        assert heading == "configuration is not usable:"
        named = [re.match(r"  - (WAYBILL_[A-Z_]+)(:| is) ", line)[1] for line in lines]
        assert sorted(named) == sorted(bad)
        assert not set(refusal) & set(SECRET)
    else:
        assert not bad
        for name, value in meant.items():
            assert revealed(getattr(settings, name)) == value
        for name in SETTINGS.keys() - meant.keys() - {"database_url", "max_request_size", "upload_max_time"}:
            assert getattr(settings, name) == getattr(Settings(), name)


def outcome(environ):
    try:
        return load(environ, Path("/nonexistent/.env")), None
    except Unusable as refusal:
        return None, str(refusal)


def revealed(value):
    if isinstance(value, tuple):
        return tuple(map(revealed, value))
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value


def test_the_property_covers_every_setting():
    assert set(SETTINGS) == set(Settings.model_fields)
