"""The model: uploads, sessions and pages of history, and the rules a record must keep.

Times are integers inside, microseconds since 1970-01-01 UTC, and RFC 3339 text outside.
Sizes are bytes. Digests are SHA-256, lower-case hex.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    computed_field,
    model_validator,
)
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from app.annotations import Annotations, checked_metadata, metadata_json, sendable, stored_pairs

MAX_FILENAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 1024
MAX_CONTENT_TYPE_CHARACTERS: Final = 255
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
MAX_TIME_US: Final = 253_402_300_799_999_999  # the last microsecond of the year 9999
MAX_SIZE: Final = 2**63 - 1
LOST: Final = "lost"
DAMAGED: Final = "damaged"

Clock = Callable[[], int]
"""Returns the present moment in microseconds since 1970-01-01 UTC."""

_FOUND: Final = {
    "missing": "the stored file is missing",
    "replaced": "something else lies in the place of the stored file",
    "resized": "the stored file has another length than was received",
    "altered": "the stored file has other bytes than were received",
    "unreadable": "the stored file cannot be read",
    "withheld": "the service is not allowed to read the stored file",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Status(StrEnum):
    UPLOADING = "uploading"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    DELETED = "deleted"


class Damage(StrEnum):
    """The ways in which a stored file can differ from its record. A withheld one may well be intact."""

    MISSING = "missing"
    REPLACED = "replaced"
    RESIZED = "resized"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    WITHHELD = "withheld"

    @property
    def failure(self) -> "Failure":
        """The failure that the record of a damaged upload states."""
        return Failure(code=LOST if self is Damage.MISSING else DAMAGED, detail=_FOUND[self])


class Protocol(StrEnum):
    FORM = "form"
    RAW = "raw"
    TUS = "tus"
    RESUMABLE = "resumable"


# A dictionary look-up costs a tenth of calling the enum, for every record of every page.
_STATUSES: Final = {status.value: status for status in Status}
_PROTOCOLS: Final = {protocol.value: protocol for protocol in Protocol}


def rfc3339(time_us: int) -> str:
    """The time as `2026-11-22T20:33:00.123456Z`: always six digits, always Z."""
    seconds, beyond = divmod(time_us, 1_000_000)
    return f"{_rfc3339_seconds(seconds)}.{beyond:06}Z"


@lru_cache(maxsize=1024)
def _rfc3339_seconds(seconds: int) -> str:
    # Cached, because times that are rendered together are close: records of one page, the two times of an upload.
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware `moment`; exact, unlike `timestamp()`."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def is_upload_id(text: str) -> bool:
    """Whether `text` is an id as we write it: a UUID in canonical lower-case text."""
    return _ID.fullmatch(text) is not None


def _display_name(name: str) -> str:
    if len(name.encode("utf-8", "strict")) > MAX_FILENAME_BYTES:
        raise ValueError(f"a filename has at most {MAX_FILENAME_BYTES} bytes")
    if _CONTROL.search(name) or "/" in name or "\\" in name or name in {"", ".", ".."}:
        raise ValueError("not a filename for display")
    return name


def _display_path(path: str) -> str:
    if len(path.encode("utf-8", "strict")) > MAX_PATH_BYTES:
        raise ValueError(f"a path has at most {MAX_PATH_BYTES} bytes")
    elements = path.split("/")
    if len(elements) < 2:
        raise ValueError("a path has two elements or more")
    for element in elements:
        _display_name(element)
    return path


Timestamp = Annotated[
    int,
    Field(ge=0, le=MAX_TIME_US),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
UploadId = Annotated[str, Field(pattern=f"^{_ID.pattern}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, le=MAX_SIZE)]
DisplayName = Annotated[str, AfterValidator(_display_name)]
Text = Annotated[str, AfterValidator(sendable)]


class Failure(BaseModel):
    """The reason why an upload failed: a problem code and a sentence for people."""

    model_config = ConfigDict(frozen=True, strict=True)

    code: Annotated[Text, Field(min_length=1)]
    detail: Text


class Links(TypedDict):
    """The paths of a record and its bytes; `content` is null unless the bytes are there."""

    self: str
    content: str | None


class Upload(BaseModel):
    """One upload's record: its validator, its JSON and its schema.

    Every key is always present in JSON. A row that cannot become an Upload breaks the
    model; it is left out of every page.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", json_schema_serialization_defaults_required=True
    )

    id: UploadId
    session_id: str = Field(exclude=True, min_length=1)
    filename: DisplayName
    content_type: Annotated[str, Field(max_length=MAX_CONTENT_TYPE_CHARACTERS), AfterValidator(sendable)] | None
    size: Size
    sha256: Digest | None
    status: Status
    protocol: Protocol
    created_at: Timestamp
    completed_at: Timestamp | None
    error: Failure | None
    metadata: Annotated[dict[str, str], AfterValidator(checked_metadata)] = Field(default_factory=dict)
    path: Annotated[str, AfterValidator(_display_path)] | None = None
    keep_us: Annotated[int, Field(gt=0, le=MAX_TIME_US)] | None = Field(default=None, exclude=True)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def expires_at(self) -> Timestamp | None:
        """When the bytes will be deleted; None if that is not planned, or they are not there."""
        if self.keep_us is None or self.completed_at is None or self.status is not Status.COMPLETED:
            return None
        return min(self.completed_at + self.keep_us, MAX_TIME_US)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own idiom: a computed field over a property
    @property
    def links(self) -> Links:
        content = f"/api/ingestion/files/{self.id}" if self.status is Status.COMPLETED else None
        return {"self": f"/api/ingestion/history/{self.id}", "content": content}

    @property
    def annotations(self) -> Annotations:
        return Annotations(self.metadata, self.path, self.keep_us)

    @property
    def damaged(self) -> bool:
        """Whether the upload was completed, and its stored file was found to be missing or altered."""
        return self.completed_at is not None and self.error is not None and self.error.code in {LOST, DAMAGED}

    @model_validator(mode="after")
    def _status_is_borne_out(self) -> Self:
        if self.status in {Status.COMPLETED, Status.DELETED} and (self.sha256 is None or self.completed_at is None):
            raise ValueError(f"a {self.status} upload has a digest and a time of completion")
        if self.completed_at is not None and self.completed_at < self.created_at:
            raise ValueError("an upload is completed after it was created")
        if (self.status is Status.FAILED) != (self.error is not None):
            raise ValueError("an upload has an error when it failed, and only then")
        return self

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Upload":
        """Make the record of a row of `uploads`.

        Raises:
            pydantic.ValidationError: the row breaks the model.
        """
        code = row["error_code"]
        return cls(
            id=row["id"],
            session_id=row["session_id"],
            filename=row["filename"],
            content_type=row["content_type"],
            size=row["size_bytes"],
            sha256=row["sha256"],
            status=_STATUSES.get(row["status"], row["status"]),  # the model refuses an unknown one
            protocol=_PROTOCOLS.get(row["protocol"], row["protocol"]),
            created_at=row["created_at_us"],
            completed_at=row["completed_at_us"],
            error=None if code is None else Failure(code=code, detail=row["error_detail"]),
            metadata=stored_pairs(row["metadata"]),
            path=row["path"],
            keep_us=row["keep_us"],
        )

    def as_row(self) -> dict[str, str | int | None]:
        """The record as the columns of `uploads`."""
        return {
            "id": self.id,
            "session_id": self.session_id,
            "filename": self.filename,
            "filename_folded": folded(self.filename),
            "content_type": self.content_type,
            "size_bytes": self.size,
            "sha256": self.sha256,
            "status": str(self.status),
            "protocol": str(self.protocol),
            "error_code": self.error.code if self.error else None,
            "error_detail": self.error.detail if self.error else None,
            "created_at_us": self.created_at,
            "completed_at_us": self.completed_at,
            "metadata": metadata_json(self.metadata) if self.metadata else None,
            "path": self.path,
            "path_folded": None if self.path is None else folded(self.path),
            "keep_us": self.keep_us,
        }

    def as_json(self) -> bytes:
        """The record as a client sees it, in UTF-8."""
        return self.__pydantic_serializer__.to_json(self)


def folded(text: str) -> str:
    """`text` as it is compared without regard to case: NFC of the case-folded NFC form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


class Session(BaseModel):
    """One browser or client, or several that were linked; `id` is a public handle and opens nothing."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    created_at: Timestamp
    last_seen_at: Timestamp
    expires_at: Timestamp


class Digests(NamedTuple):
    """The digests that bytes must have, in hex; None for one that nobody declared."""

    sha256: str | None = None
    sha512: str | None = None

    def agrees_with(self, other: "Digests") -> bool:
        """Whether the same bytes can have the digests of both."""
        return all(one == another for one, another in zip(self, other, strict=True) if None not in (one, another))

    def joined_with(self, other: "Digests") -> "Digests":
        """The digests that are declared by either; the two must agree."""
        return Digests(self.sha256 or other.sha256, self.sha512 or other.sha512)


UNDECLARED: Final = Digests()


class Holder(NamedTuple):
    """The holder of an upload's writer lock: its fencing token, and an id that no other request ever has.

    The token alone does not identify it: a fail-over that loses the last commits lets it be drawn
    twice. A holder without an id belongs to an older version of this service.
    """

    fence: int
    id: str | None


@dataclass(frozen=True, slots=True)
class Resource:
    """A resumable upload, as the database knows it. Times are microseconds.

    `offset` bytes are durable, in the file that `upload_id` and `file_fence` name, and have
    the running digest `digest_state`. `metadata` and `concat` are the headers as received.
    A part only serves concatenations; `parts` are the key hashes of the parts of a concatenation.
    """

    key_hash: str
    upload_id: str
    session_id: str
    protocol: Protocol
    filename: str
    content_type: str
    created_at: int
    length: int | None
    offset: int
    digest_state: str | None
    metadata: str | None
    concat: str | None
    is_part: bool
    parts: tuple[str, ...] | None
    digests: Digests
    """The digests that the complete file must have."""
    file_fence: int
    fence: int
    """The fencing token of the newest request that wanted the writer lock; every such request increments it."""
    holder: Holder | None
    """The holder of the writer lock; `holder_seen_at` is when that was last known to be at work."""
    holder_seen_at: int | None
    expires_at: int
    last_expires_at: int
    ended_as: Literal["completed", "cancelled", "expired", "failed"] | None
    upload: Upload | None
    """The record in the history; a part has none."""

    @property
    def fully_received(self) -> bool:
        """Whether all bytes of the upload are here."""
        return self.offset == self.length

    @property
    def is_final(self) -> bool:
        return self.parts is not None

    @property
    def completed(self) -> bool:
        """Whether the upload was completed (published and recorded), whatever became of its file since."""
        return self.upload is not None and self.upload.completed_at is not None


class Amount(NamedTuple):
    """A number of uploads, and of the bytes in them."""

    uploads: int
    size: int


class StatusTotal(NamedTuple):
    """The number of uploads of one status, and of their bytes."""

    status: str
    uploads: int
    size: int
