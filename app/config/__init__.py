"""Settings: read once from the environment, every value understood or refused, all problems reported together."""

import os
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

from dotenv.parser import Binding, parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from app.config.types import (
    MIN_KEY_CHARACTERS,
    BasePath,
    DatabaseUrl,
    Directory,
    Duration,
    GiB,
    Host,
    ImagePath,
    Keys,
    KiB,
    Listen,
    MiB,
    Origins,
    Proxies,
    SchemaName,
    Size,
    SizeAboveZero,
    Title,
    Versions,
    YesOrNo,
    one_of,
    whole_number,
)
from app.errors import Unusable
from app.model import MAX_SIZE

PREFIX: Final = "WAYBILL_"
ENV_FILE: Final = Path(".env")
OF_THE_CLIENT: Final = frozenset({f"{PREFIX}URL", f"{PREFIX}TOKEN"})
"""Variables that `waybill push` and its like read, and the service passes over."""

Durability = Literal["full", "fast"]
SecureCookies = Literal["auto", "always"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]


class Settings(BaseSettings):
    """The settings: everything that differs between two running copies of the service.

    Built from keywords it holds those and the defaults, whatever the machine's
    environment; `load` reads the environment.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, case_sensitive=True, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    # Storage and database.
    storage_dir: Directory = Field(
        Path("waybill-data"), description="Directory of the stored and the unfinished files; made if it is missing."
    )
    database_url: DatabaseUrl = Field(
        default_factory=lambda given: SecretStr(f"sqlite:///{quote(str(given['storage_dir'] / 'waybill.db'))}"),
        description="Database of the records: sqlite:///path, or postgresql://user:password@host/database, which "
        "may have several hosts and ?ssl=mode. Default: waybill.db in the storage directory.",
    )
    database_schema: SchemaName = Field(
        "",
        description="PostgreSQL schema of the tables; made if it is missing and the role may make it. "
        "Default: the first existing one of the role's search path.",
    )
    database_pool_size: Annotated[int, whole_number(2, 1000)] = Field(
        8, description="Most connections of each worker to PostgreSQL."
    )
    durability: Annotated[Durability, one_of(Durability)] = Field(
        "full", description="full: an accepted upload survives a power cut; fast: it survives a crash of the service."
    )
    min_free_space: Size = Field(512 * MiB, description="Space on the disk, in bytes, that uploads leave free.")
    sweep_interval: Duration = Field(
        timedelta(minutes=10),
        description="How often leftovers of crashes and abandoned uploads are cleaned up.",
    )

    scrub_rate: Size = Field(
        4 * MiB,
        description="Speed at which stored files are read again and compared, in bytes a second; 0 turns that off.",
    )

    retain_failed: Duration = Field(
        timedelta(days=90),
        description="How long the records of failed and expired uploads that never were complete are kept.",
    )

    # Limits on uploads and sessions.
    max_file_size: SizeAboveZero = Field(5 * GiB, description="Largest accepted file, in bytes.")
    max_request_size: SizeAboveZero = Field(
        default_factory=lambda given: min(given["max_file_size"] + GiB, MAX_SIZE),
        description="Largest accepted request body, in bytes, no less than the largest file. Default: 1GiB more.",
    )
    max_files_per_request: Annotated[int, whole_number(1, 100_000)] = Field(
        100, description="Most files in one form; at most a quarter of the files that each worker may have open."
    )
    max_zip_files: Annotated[int, whole_number(1, 1_000_000)] = Field(
        10_000, description="Most files in one archive that is downloaded; each takes a kilobyte of memory meanwhile."
    )
    link_max_age: Duration | None = Field(
        None, description="How long a share link lives at most, and if its maker names no end. Default: no end."
    )
    max_concurrent_uploads: Annotated[int, whole_number(1, 1_000_000)] = Field(
        4000, description="Most uploads that each worker receives at the same time."
    )
    max_connections: Annotated[int, whole_number(1, 1_000_000)] = Field(
        8000, description="Most open connections of each worker; one more gets 503, and is closed."
    )
    session_concurrent_uploads: Annotated[int, whole_number(0, 1_000_000)] = Field(
        0, description="Most uploads that each worker receives from one session at the same time; 0 for any number."
    )
    session_quota: Size = Field(
        0, description="Most bytes that one session keeps, uploads under way included; 0 for any number."
    )
    session_quota_uploads: Annotated[int, whole_number(0, 2**53)] = Field(
        0, description="Most uploads that one session keeps, uploads under way included; 0 for any number."
    )
    request_timeout: Duration = Field(
        timedelta(days=1), description="How long the body of one request may take to arrive, however fast it is."
    )
    min_upload_rate: Size = Field(KiB, description="Slowest accepted body, in bytes a second; 0 accepts any.")
    upload_idle_time: Duration = Field(
        timedelta(days=1), description="How long an unfinished resumable upload is kept while no bytes arrive."
    )
    upload_max_time: Duration = Field(
        default_factory=lambda given: max(given["upload_idle_time"], timedelta(days=7)),
        description=f"How long an unfinished resumable upload is kept in all, no less than {PREFIX}UPLOAD_IDLE_TIME. "
        "Default: 7d, or as long as that.",
    )
    interop_versions: Versions = Field(
        (5, 6, 8, 9, 10),
        description="Interop versions of HTTP's resumable uploads whose clients get a 104 that says where to resume.",
    )
    interim_responses: YesOrNo = Field(
        True,
        description="true: a client learns early, by a status 104, where it can resume; false: none is sent, for a "
        "proxy in front, such as nginx, that does not pass it on.",
    )

    # Trust: proxies, origins, keys.
    secret_keys: Keys = Field(
        (),
        description=f"Keys that sign sessions, {MIN_KEY_CHARACTERS} characters or more: the first signs, all verify. "
        "Default: one that is made once and kept in secret.key in the storage directory.",
    )
    session_max_age: Duration = Field(
        timedelta(days=30),
        description="How long an unused session lives, exact to a thirtieth. An upload under way is a use.",
    )
    upload_url_needs_session: YesOrNo = Field(
        False,
        description="true: the URL of a resumable upload needs its own session beside it; false: the URL is enough.",
    )
    secure_cookies: Annotated[SecureCookies, one_of(SecureCookies)] = Field(
        "auto", description="auto: a cookie is Secure if its request came over HTTPS; always: every cookie is."
    )
    allowed_origins: Origins = Field(
        (), description="Other sites whose pages may use this service, as scheme://host[:port]."
    )
    trusted_proxies: Proxies = Field(
        (),
        description="Addresses or networks whose X-Forwarded or Forwarded headers are believed; unix for clients of "
        "the socket file, * for all.",
    )

    # The page.
    title: Title = Field("Waybill", description="Name of the service on its page, up to 100 characters.")
    logo: ImagePath = Field(
        None, description="PNG or SVG file of up to 64 KiB that the page shows beside its name; read at the start."
    )

    # Operation.
    host: Host = Field("127.0.0.1", description="Address, or name of one, to listen on.")
    port: Annotated[int, whole_number(0, 65_535)] = Field(
        8000, description="Port to listen on; 0 for any that is free."
    )
    base_path: BasePath = Field(
        "", description="Path below which everything is served, such as /uploads; a proxy in front does not strip it."
    )
    listen: Listen = Field(
        None,
        description="What to listen on instead of host and port: unix:PATH for a socket file (mode 0660), fd:N for an "
        "open descriptor, systemd for what a .socket unit has opened.",
    )
    workers: Annotated[int, whole_number(1, 256)] = Field(1, description="Processes that serve.")
    shutdown_timeout: Duration = Field(
        timedelta(seconds=30), description="How long requests may take to end after a stop was requested."
    )
    log_format: Annotated[LogFormat, one_of(LogFormat)] = Field(
        "text", description="Format of the log, a line per event: text for people, json for programs."
    )
    log_level: Annotated[LogLevel, one_of(LogLevel)] = Field("info", description="Least severe level that is logged.")

    @field_validator("database_schema")
    @classmethod
    def _is_in_postgresql(cls, schema: str, others: ValidationInfo) -> str:
        url: SecretStr | None = others.data.get("database_url")
        if schema and url is not None and url.get_secret_value().startswith("sqlite:"):
            raise ValueError("expected none with sqlite")
        return schema

    @field_validator("max_request_size")
    @classmethod
    def _holds_the_largest_file(cls, size: int, others: ValidationInfo) -> int:
        largest = others.data.get("max_file_size", 0)
        if size < largest:
            raise ValueError(f"expected no less than {PREFIX}MAX_FILE_SIZE, {largest} bytes")
        return size

    @field_validator("upload_max_time")
    @classmethod
    def _outlasts_idleness(cls, time: timedelta, others: ValidationInfo) -> timedelta:
        if time < others.data.get("upload_idle_time", time):
            raise ValueError(f"expected no less than {PREFIX}UPLOAD_IDLE_TIME")
        return time

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The library's own readers ignore what they do not know, a misspelt variable or a broken line
        # of .env among it, and they would let a test see the machine it runs on. `load` reads instead.
        return (init_settings,)


_FIELDS: Final = {PREFIX + name.upper(): name for name in Settings.model_fields}
_SECRET: Final = {"database_url", "secret_keys"}


def load(environ: Mapping[str, str] | None = None, env_file: Path = ENV_FILE) -> Settings:
    """Read the settings from the environment (the process's own, if none is given) and `env_file`.

    The environment wins over the file.

    Raises:
        Unusable: a variable is unknown or not understood; the text has a line for each. No key, no
            password and no value of an unknown variable stands in it.
    """
    written, problems = _read(env_file)
    given = written | {name: text for name, text in (os.environ if environ is None else environ).items() if _ours(name)}
    known: dict[str, Any] = {_FIELDS[name]: text for name, text in given.items() if name in _FIELDS}
    try:
        settings = Settings(**known)
    except ValidationError as error:
        problems += _refusals(error, known)
    if "listen" in known and (beside := [name for name in ("host", "port") if name in known]):
        names = " and ".join(f"{PREFIX}{name.upper()}" for name in beside)
        problems.append(f"{PREFIX}LISTEN stands beside {names}, expected one or the other")
    problems += [_unknown(name) for name in sorted(given.keys() - _FIELDS.keys())]
    if problems:
        raise Unusable("\n  - ".join(["configuration is not usable:", *problems]))
    return settings


def _read(env_file: Path) -> tuple[dict[str, str], list[str]]:
    """Read the variables in a file of NAME=value lines, if the file exists, and the problems found in it.

    Values are taken literally: a `$` is an ordinary character.
    """
    try:
        with env_file.open(encoding="utf-8-sig") as stream:
            lines = list(parse_stream(stream))
    except (FileNotFoundError, IsADirectoryError):
        return {}, []
    except OSError as error:
        return {}, [f"{env_file} cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return {}, [f"{env_file} is not UTF-8 text"]
    ours = {line.key: line.value for line in lines if line.key is not None and _ours(line.key)}
    broken = [line for line in lines if line.error or (line.key in ours and line.value is None)]
    problems = [f"{env_file}: line {_line_number(line)} cannot be understood, expected NAME=value" for line in broken]
    return {name: text for name, text in ours.items() if text is not None}, problems


def _line_number(line: Binding) -> int:
    text = line.original.string  # blank lines before it count as a part of it
    return line.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _ours(name: str) -> bool:
    return name.upper().startswith(PREFIX) and name not in OF_THE_CLIENT


def _refusals(error: ValidationError, known: Mapping[str, str]) -> list[str]:
    problems = []
    for fault in error.errors(include_url=False, include_input=False):
        if fault["type"] == "default_factory_not_called":
            continue  # a default derived from another setting, which is refused by itself
        field = str(fault["loc"][0])
        found = ":" if field in _SECRET else f" is {_shown(known[field])},"
        problems.append(f"{PREFIX}{field.upper()}{found} {fault['ctx']['error']}")
    return problems


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}…"


def _unknown(name: str) -> str:
    near = get_close_matches(name[len(PREFIX) :].lower(), Settings.model_fields, n=1)
    printable = name.encode("unicode_escape").decode()
    return f"{printable} is not a setting" + (f"; did you mean {PREFIX}{near[0].upper()}?" if near else "")
