"""What every database must do for the records: once for all dialects."""

import asyncio
import random
import uuid
from dataclasses import replace
from itertools import product

import pytest

from app.db.database import Db
from app.db.queryable import json_parameter
from app.errors import NotFound
from app.history import HistoryQuery, Position
from app.maintenance import records as maintenance_records
from app.model import MAX_SIZE, Digests, Failure, Holder, Protocol, Resource, Session, Status, Upload, folded
from app.resumables import records as resumable_records
from app.sessions import merge_records, token_records, totals_records
from app.sessions import records as session_records
from app.sessions.merge import SessionMerges
from app.sessions.records import NewSession, Seen
from app.uploads import records as upload_records

NOW = 1_700_000_000_000_000


def upload(number: int, session_id: str = "mine", **changes) -> Upload:
    """A completed upload; its id and its times follow from `number`."""
    fields = {
        "id": str(uuid.UUID(int=number)),
        "session_id": session_id,
        "filename": f"file {number}.txt",
        "content_type": "text/plain",
        "size": number,
        "sha256": f"{number:064x}",
        "status": Status.COMPLETED,
        "protocol": Protocol.FORM,
        "created_at": NOW + number,
        "completed_at": NOW + number + 1,
        "error": None,
    }
    return Upload(**{**fields, **changes})


def session(session_id: str, *, expires_at: int = NOW + 1000) -> NewSession:
    created = Session(id=session_id, created_at=NOW, last_seen_at=NOW, expires_at=expires_at)
    return NewSession(created, f"token of {session_id}")


async def insert(db: Db, *arrivals: NewSession) -> None:
    await db.transaction(lambda unit: session_records.insert_sessions(unit, arrivals))


def resource(number: int, **changes) -> Resource:
    """A resumable upload of which nothing has come yet."""
    coming = upload(number, size=0, sha256=None, status=Status.UPLOADING, protocol=Protocol.TUS, completed_at=None)
    fields = {
        "key_hash": f"{number:064x}",
        "upload_id": coming.id,
        "session_id": "mine",
        "protocol": Protocol.TUS,
        "filename": coming.filename,
        "content_type": "text/plain",
        "created_at": coming.created_at,
        "length": None,
        "offset": 0,
        "digest_state": None,
        "metadata": None,
        "concat": None,
        "is_part": False,
        "parts": None,
        "digests": Digests(),
        "file_fence": 0,
        "fence": 0,
        "holder": None,
        "holder_seen_at": None,
        "expires_at": NOW + 5,
        "last_expires_at": NOW + 9,
        "ended_as": None,
        "upload": coming,
    }
    return Resource(**{**fields, **changes})


async def inserted(db: Db, new: Resource) -> str:
    await db.transaction(lambda unit: resumable_records.insert(unit, new, None))
    return new.key_hash


async def everything(db: Db, session_id: str = "mine", query: HistoryQuery | None = None, page_size: int = 500):
    """Every upload that a listing gives, page after page."""
    found, after = [], None
    while True:
        page = await upload_records.list_uploads(
            db, session_id, query or HistoryQuery(), after=after, page_size=page_size
        )
        assert len(page.uploads) + page.skipped <= page_size
        found += page.uploads
        if page.end is None:
            return found
        after = page.end


async def opens(db: Db, token: str, now_us: int = NOW) -> str | None:
    found = await token_records.find_session(db, token, now_us)
    return found.session.id if found else None


async def taken(db: Db, code: str, now_us: int = NOW) -> str | None:
    """The session that a code opens, once."""
    found = await token_records.take_code(db, code, now_us)
    return found.session_id if found else None


async def empty_sessions(db: Db, ended_before_us: int) -> int:
    """Delete them, one by one; how many."""
    return sum([page async for page in session_records.forget_empty_sessions(db, ended_before_us, 1)])


class RecordsContract:
    # Recording and finding.

    async def test_an_upload_comes_back_as_it_was_recorded(self, db):
        failed = upload(
            2, status=Status.FAILED, sha256=None, completed_at=None, error=Failure(code="too_large", detail="at 5 %: ü")
        )
        extreme = upload(
            3,
            filename='a "%_\\:x; \U0001f600é.txt'.replace("\\", ""),
            content_type=None,
            size=MAX_SIZE,
            protocol=Protocol.TUS,
        )
        uploads = [upload(1), failed, extreme]
        await upload_records.insert_uploads(db, uploads)
        assert await everything(db) == [extreme, failed, upload(1)]
        assert await upload_records.list_these(db, [*(each.id for each in uploads), "unknown"]) == {
            each.id: each for each in uploads
        }

    async def test_recording_twice_is_recording_once(self, db):
        await upload_records.insert_uploads(db, [upload(1)])
        await upload_records.insert_uploads(db, [upload(1, filename="other.txt"), upload(2)])
        assert await everything(db) == [upload(2), upload(1)]

    async def test_an_upload_in_flight_lands_or_fails_once(self, db):
        coming = {"size": 0, "sha256": None, "completed_at": None, "protocol": Protocol.TUS}
        failed = {
            "status": Status.FAILED,
            "error": Failure(code="gone", detail=""),
            "sha256": None,
            "completed_at": None,
        }
        waiting = [
            upload(number, status=status, **coming)
            for number, status in ((1, Status.UPLOADING), (2, Status.PROCESSING), (3, Status.UPLOADING))
        ]
        await upload_records.insert_uploads(db, waiting)
        arrived = [
            upload(1, protocol=Protocol.TUS),
            upload(2, protocol=Protocol.TUS),
            upload(3, **{**coming, **failed}),
        ]
        for _ in range(2):
            await upload_records.insert_uploads(db, arrived)
            assert await everything(db) == arrived[::-1]
            await upload_records.insert_uploads(db, [upload(number, **failed) for number in (1, 2)] + [upload(3)])
            await upload_records.insert_uploads(db, waiting)

    async def test_an_upload_lands_in_the_session_of_its_record(self, db):
        await upload_records.insert_uploads(
            db, [upload(1, "joined", status=Status.UPLOADING, sha256=None, completed_at=None)]
        )
        await upload_records.insert_uploads(db, [upload(1, "mine")])
        assert await everything(db, "joined") == [upload(1, "joined")]

    async def test_a_batch_may_be_empty(self, db):
        await upload_records.insert_uploads(db, [])
        await insert(db)
        await session_records.touch_sessions(db, [])
        assert await upload_records.statuses_of(db, []) == {}
        assert await upload_records.fail_uploads(db, [], "lost", "gone") == []
        assert await upload_records.repair_uploads(db, []) == []

    async def test_a_batch_with_a_row_the_database_refuses_leaves_nothing(self, db):
        bad = upload(2).model_copy(update={"size": -1})
        with pytest.raises(Exception, match="uploads_size_not_negative"):
            await upload_records.insert_uploads(db, [upload(1), bad])
        assert await everything(db) == []

    async def test_a_transaction_that_raises_is_undone(self, db):
        async def work(unit):
            await upload_records.insert_uploads(unit, [upload(1)])
            assert await everything(unit) == [upload(1)]
            raise NotFound

        with pytest.raises(NotFound):
            await db.transaction(work)
        assert await everything(db) == []

    async def test_another_sessions_upload_is_not_found(self, db):
        await upload_records.insert_uploads(db, [upload(1, "other")])
        assert await everything(db) == []
        assert await upload_records.count_uploads(db, "mine", HistoryQuery()) == 0
        assert await totals_records.find(db, "mine") == ([], (0, 0))
        assert not await upload_records.delete_upload(db, "mine", upload(1).id, NOW)

    # Pages.

    @pytest.mark.parametrize("order", ["newest", "oldest"])
    @pytest.mark.parametrize("page_size", [1, 2, 3, 7, 8])
    async def test_pages_make_the_whole_without_gaps_or_repeats(self, db, order, page_size):
        # Several were created in the same microsecond: the id decides between them.
        uploads = [upload(n, created_at=NOW + n // 3, completed_at=NOW + 9) for n in range(7)]
        await upload_records.insert_uploads(db, random.Random(1).sample(uploads, 7))
        found = await everything(db, query=HistoryQuery(order=order), page_size=page_size)
        assert found == (uploads if order == "oldest" else uploads[::-1])

    async def test_a_last_page_that_is_full_has_no_end(self, db):
        await upload_records.insert_uploads(db, [upload(1), upload(2)])
        page = await upload_records.list_uploads(db, "mine", HistoryQuery(), after=None, page_size=2)
        assert (len(page.uploads), page.end, page.skipped) == (2, None, 0)

    async def test_new_uploads_move_nothing_between_pages(self, db):
        await upload_records.insert_uploads(db, [upload(n) for n in range(4)])
        first = await upload_records.list_uploads(db, "mine", HistoryQuery(), after=None, page_size=2)
        await upload_records.insert_uploads(db, [upload(9)])
        second = await upload_records.list_uploads(db, "mine", HistoryQuery(), after=first.end, page_size=2)
        assert [each.size for each in first.uploads + second.uploads] == [3, 2, 1, 0]

    @pytest.mark.parametrize("order", ["newest", "oldest"])
    async def test_a_page_may_start_from_a_position_that_is_no_row(self, db, order):
        await upload_records.insert_uploads(db, [upload(n) for n in range(4)])
        between = Position(NOW + 2, "")
        page = await upload_records.list_uploads(db, "mine", HistoryQuery(order=order), after=between, page_size=9)
        assert [each.size for each in page.uploads] == ([1, 0] if order == "newest" else [2, 3])

    @pytest.mark.parametrize("order", ["newest", "oldest"])
    async def test_a_position_outside_of_the_filter_does_not_widen_it(self, db, order):
        await upload_records.insert_uploads(db, [upload(n) for n in range(6)])
        query = HistoryQuery(order=order, from_us=NOW + 2, to_us=NOW + 4)
        outside = Position(NOW + 5, "") if order == "newest" else Position(NOW, "")
        page = await upload_records.list_uploads(db, "mine", query, after=outside, page_size=9)
        assert sorted(each.size for each in page.uploads) == [2, 3]

    # Filters.

    FILTERS = (
        ({"statuses": (Status.FAILED,)}, {4}),
        ({"statuses": (Status.FAILED, Status.UPLOADING)}, {4, 5}),
        ({"protocol": Protocol.RAW}, {3}),
        ({"sha256": f"{2:064x}"}, {2}),
        ({"min_size": 4}, {4, 5}),
        ({"max_size": 1}, {0, 1}),
        ({"min_size": 2, "max_size": 2}, {2}),
        ({"from_us": NOW + 4}, {4, 5}),
        ({"to_us": NOW + 4}, {0, 1, 2, 3}),
        ({"from_us": NOW + 2, "to_us": NOW + 3}, {2}),
        ({"from_us": NOW + 3, "to_us": NOW + 3}, set()),
        ({"filename": "FILE 3"}, {3}),
        ({"filename": "file ?.txt"}, {0, 1, 2, 3, 4, 5}),
        ({"filename": "*5*"}, {5}),
        ({"filename": "e 5", "min_size": 5, "statuses": (Status.UPLOADING,), "protocol": Protocol.FORM}, {5}),
        ({"filename": "e 5", "min_size": 6}, set()),
    )

    async def test_a_filter_finds_what_it_says_on_every_page(self, db):
        uploads = [upload(n) for n in range(6)]
        uploads[3] = upload(3, protocol=Protocol.RAW)
        uploads[4] = upload(4, status=Status.FAILED, error=Failure(code="lost", detail=""))
        uploads[5] = upload(5, status=Status.UPLOADING, sha256=None, completed_at=None)
        await upload_records.insert_uploads(db, uploads)
        for (filters, expected), order, page_size in product(self.FILTERS, ("newest", "oldest"), (1, 500)):
            query = HistoryQuery(**filters, order=order)
            found = [each.size for each in await everything(db, query=query, page_size=page_size)]
            assert (query, found) == (query, sorted(expected, reverse=order == "newest"))
            assert (query, await upload_records.count_uploads(db, "mine", query)) == (query, len(expected))

    async def test_digests_that_begin_alike_are_told_apart(self, db):
        alike = [f"{1:016x}" + f"{n:048x}" for n in (0, 1, 0, 2)]
        await upload_records.insert_uploads(db, [upload(n, sha256=digest) for n, digest in enumerate(alike)])
        await upload_records.insert_uploads(db, [upload(9, "other", sha256=alike[0])])
        for order, page_size in product(("newest", "oldest"), (1, 500)):
            query = HistoryQuery(sha256=alike[0], order=order)
            found = [each.size for each in await everything(db, query=query, page_size=page_size)]
            assert found == ([2, 0] if order == "newest" else [0, 2])

    @pytest.mark.parametrize("statuses", [(Status.FAILED,), (Status.DELETED, Status.UPLOADING, Status.FAILED)])
    async def test_pages_of_rare_statuses_make_the_whole_in_order(self, db, statuses):
        # Several were created in the same microsecond: the id decides between them.
        uploads = [
            upload(n, **{"created_at": NOW + n // 3, "completed_at": NOW + 99, **self.CHANGES[status]})
            for n, status in enumerate(random.Random(1).choices(list(self.CHANGES), k=40))
        ]
        await upload_records.insert_uploads(db, uploads)
        expected = [each for each in uploads if each.status in statuses]
        for order, page_size in product(("newest", "oldest"), (1, 2, 7, 500)):
            query = HistoryQuery(statuses=statuses, order=order)
            found = await everything(db, query=query, page_size=page_size)
            assert found == (expected if order == "oldest" else expected[::-1])

    CHANGES = {  # noqa: RUF012
        Status.COMPLETED: {},
        Status.UPLOADING: {"status": Status.UPLOADING, "sha256": None, "completed_at": None},
        Status.FAILED: {"status": Status.FAILED, "error": Failure(code="lost", detail="")},
        Status.DELETED: {"status": Status.DELETED},
    }

    async def test_an_upload_that_ends_while_a_page_is_listed_is_on_it_once(self, db):
        coming = [upload(n, **self.CHANGES[Status.UPLOADING]) for n in range(3)]
        await upload_records.insert_uploads(db, coming)

        class Changing:
            """The database, in which an upload expires after each query."""

            async def many(self, name, **parameters):
                rows = await db.many(name, **parameters)
                await db.run("end_upload", upload_id=coming[1].id, status="expired", error_code=None, error_detail=None)
                return rows

        query = HistoryQuery(statuses=(Status.EXPIRED, Status.UPLOADING))
        page = await upload_records.list_uploads(Changing(), "mine", query, after=None, page_size=9)
        assert [(each.size, each.status) for each in page.uploads] == [
            (2, Status.UPLOADING),
            (1, Status.EXPIRED),
            (0, Status.UPLOADING),
        ]

    NAMES = (
        "100%.txt", "100x.txt", "a_b", "axb", "c[1]", "Ärger.PDF", "ärger.pdf", "a\u0308rger", "straße", "STRASSE",
        "İstanbul", "ΣΊΣΥΦΟΣ", "🎉 party", "🎈 party", "=?*", "tab le", "'; DROP TABLE uploads;--", '"', ":name::",
    )  # fmt: skip
    SEARCHES = (
        ("%", {"100%.txt"}),
        ("_", {"a_b"}),
        ("a_b", {"a_b"}),
        ("0%.T", {"100%.txt"}),
        ("[1]", {"c[1]"}),
        ("\\", set()),
        ("\\%", set()),
        ("ärger", {"Ärger.PDF", "ärger.pdf", "a\u0308rger"}),
        ("A\u0308RGER", {"Ärger.PDF", "ärger.pdf", "a\u0308rger"}),
        ("strasse", {"straße", "STRASSE"}),
        ("ß", {"straße", "STRASSE"}),
        ("i\u0307s", {"İstanbul"}),
        ("σίσυφος", {"ΣΊΣΥΦΟΣ"}),
        ("🎉", {"🎉 party"}),
        ("? party", {"🎉 party", "🎈 party"}),
        ("*.pdf", {"Ärger.PDF", "ärger.pdf"}),
        ("*pdf*", {"Ärger.PDF", "ärger.pdf"}),
        ("a?b", {"a_b", "axb"}),
        ("100?.txt", {"100%.txt", "100x.txt"}),
        ("'", {"'; DROP TABLE uploads;--"}),
        (":name::", {":name::"}),
        ("**", set(NAMES)),
    )

    async def test_a_filename_is_looked_for_without_regard_to_case(self, db):
        await upload_records.insert_uploads(db, [upload(n, filename=name) for n, name in enumerate(self.NAMES)])
        for asked, expected in self.SEARCHES:
            found = {each.filename for each in await everything(db, query=HistoryQuery(filename=asked))}
            assert (asked, found) == (asked, expected)

    async def test_a_backslash_in_a_stored_name_is_an_ordinary_character(self, db):
        # No legal name has one, but a row that came in some other way may.
        async def work(unit):
            for number, name in enumerate(["a\\b", "a\\%", "ab"]):
                row = {**upload(number).as_row(), "filename": name, "filename_folded": folded(name)}
                await unit.run("insert_uploads", rows=json_parameter([row]))

        await db.transaction(work)
        skipped = []
        for asked in ("\\", "\\b", "\\%", "a\\?"):
            page = await upload_records.list_uploads(db, "mine", HistoryQuery(filename=asked), after=None, page_size=9)
            skipped.append(page.skipped)
        assert skipped == [2, 1, 1, 2]

    # Summing up.

    async def test_a_summary_counts_by_status(self, db):
        failed = upload(5, status=Status.FAILED, error=Failure(code="lost", detail=""))
        await upload_records.insert_uploads(db, [upload(1), upload(2), failed, upload(7, "other")])
        assert (await totals_records.find(db, "mine")).by_status == [("completed", 2, 3), ("failed", 1, 5)]
        assert await upload_records.find_span(db, "mine") == (NOW + 1, NOW + 5)
        assert await upload_records.find_span(db, "unknown") is None

    async def test_a_sum_may_be_longer_than_an_integer_column(self, db):
        await upload_records.insert_uploads(db, [upload(n, size=MAX_SIZE) for n in range(3)])
        assert (await totals_records.find(db, "mine")).by_status == [("completed", 3, 3 * MAX_SIZE)]

    # What storage must hold.

    async def test_a_deleted_upload_keeps_its_record(self, db):
        await upload_records.insert_uploads(db, [upload(1)])
        assert await upload_records.delete_upload(db, "mine", upload(1).id, NOW)
        assert await everything(db) == [upload(1, status=Status.DELETED)]

    async def test_a_deletion_is_repeated_for_a_day_and_by_nobody_else(self, db):
        await insert(db, session("mine"), session("into"))
        await upload_records.insert_uploads(db, [upload(1)])
        for later in (0, 1, upload_records.DELETED_AGAIN_US - 1):
            assert await upload_records.delete_upload(db, "mine", upload(1).id, NOW + later)
            assert not await upload_records.delete_upload(db, "into", upload(1).id, NOW)
        assert not await upload_records.delete_upload(db, "mine", upload(1).id, NOW + upload_records.DELETED_AGAIN_US)

    async def test_an_upload_that_has_yet_to_follow_its_session_can_be_deleted(self, db):
        await insert(db, session("mine"), session("into"))
        await upload_records.insert_uploads(db, [upload(1)])
        ending = {"session_id": "mine", "into_id": "into", "now_us": NOW}
        await db.transaction(lambda unit: unit.run("end_merged_session", **ending))
        assert await upload_records.delete_upload(db, "into", upload(1).id, NOW)

    async def test_stored_uploads_are_listed_by_id_over_all_sessions(self, db):
        unfinished = upload(4, status=Status.UPLOADING, sha256=None, completed_at=None)
        await upload_records.insert_uploads(db, [upload(2, "other"), upload(1), upload(3), unfinished])
        pages, after = [], ""
        while page := await upload_records.list_stored(db, after, 2):
            pages.append([(each.id, each.size, each.sha256) for each in page])
            after = page[-1].id
        expected = [(upload(n).id, n, upload(n).sha256) for n in (1, 2, 3)]
        assert pages == [expected[:2], expected[2:]]
        assert await upload_records.count_stored(db) == 3

    async def test_uploads_whose_file_is_lost_fail_and_others_do_not(self, db):
        failed = upload(3, status=Status.FAILED, error=Failure(code="too_large", detail="first"))
        await upload_records.insert_uploads(db, [upload(1), upload(2), failed])
        ids = [upload(1).id, failed.id, "unknown"]
        assert await upload_records.fail_uploads(db, ids, "lost", "the file is gone") == [upload(1).id]
        assert await everything(db) == [
            failed,
            upload(2),
            upload(1, status=Status.FAILED, error=Failure(code="lost", detail="the file is gone")),
        ]

    async def test_a_completed_upload_that_fails_is_damaged_and_can_be_repaired(self, db):
        whole = [upload(number) for number in (1, 2, 3)]
        never_whole = {"status": Status.FAILED, "sha256": None, "completed_at": None}
        lost = upload(4, **never_whole, error=Failure(code="lost", detail="bytes are missing"))
        await upload_records.insert_uploads(db, [*whole, lost])
        await upload_records.fail_uploads(db, [whole[2].id], "lost", "it is gone")
        await upload_records.fail_uploads(db, [whole[0].id], "damaged", "it was altered")
        assert await upload_records.count_damaged(db) == 2
        pages, after = [], ""
        while page := await upload_records.list_damaged(db, after, 1):
            pages += page
            after = page[-1].id
        assert pages == [(whole[n].id, n + 1, whole[n].sha256) for n in (0, 2)]
        ids = [each.id for each in (*whole, lost)]
        assert sorted(await upload_records.repair_uploads(db, ids)) == sorted([whole[0].id, whole[2].id])
        assert await upload_records.repair_uploads(db, ids) == []
        assert await upload_records.count_damaged(db) == 0
        assert await everything(db) == [lost, *whole[::-1]]

    async def test_a_damaged_upload_can_be_deleted_and_one_that_never_was_complete_cannot(self, db):
        never_whole = {"status": Status.FAILED, "sha256": None, "completed_at": None}
        await upload_records.insert_uploads(
            db, [upload(1), upload(2, **never_whole, error=Failure(code="lost", detail="bytes are missing"))]
        )
        await upload_records.fail_uploads(db, [upload(1).id], "damaged", "it was altered")
        assert not await upload_records.delete_upload(db, "other", upload(1).id, NOW)
        assert not await upload_records.delete_upload(db, upload(2).session_id, upload(2).id, NOW)
        assert await upload_records.delete_upload(db, upload(1).session_id, upload(1).id, NOW)
        assert (await everything(db))[1] == upload(1, status=Status.DELETED)
        assert await upload_records.repair_uploads(db, [upload(1).id]) == []

    async def test_the_progress_of_the_scrub_is_kept(self, db):
        assert await maintenance_records.find_scrub(db) is None
        for scrub in (
            maintenance_records.Scrub(NOW),
            maintenance_records.Scrub(
                NOW, upload(1).id, files=2**40, found=3, ended_at_us=NOW + 1, stopped="why", whole_at_us=1
            ),
            maintenance_records.Scrub(NOW + 2, whole_at_us=1),
        ):
            await maintenance_records.save_scrub(db, scrub)
            assert await maintenance_records.find_scrub(db) == scrub

    async def test_statuses_are_found_for_ids_of_all_sessions(self, db):
        await upload_records.insert_uploads(db, [upload(1), upload(2, "other")])
        await upload_records.delete_upload(db, "other", upload(2).id, NOW)
        statuses = await upload_records.statuses_of(db, [upload(1).id, upload(2).id, upload(3).id, '"', "'"])
        assert statuses == {upload(1).id: "completed", upload(2).id: "deleted"}

    # Sessions.

    async def test_a_token_opens_its_session_until_that_expires(self, db):
        await insert(db, session("mine"), session("other"))
        assert await token_records.find_session(db, "token of mine", NOW) == (session("mine").session, None)
        assert await opens(db, "token of mine", NOW + 999) == "mine"
        assert await opens(db, "token of mine", NOW + 1000) is None
        assert await opens(db, "no such token") is None

    async def test_a_session_is_recorded_once(self, db):
        await insert(db, session("mine"))
        await insert(db, session("mine", expires_at=NOW + 5), session("other"))
        assert await opens(db, "token of mine", NOW + 999) == "mine"
        assert await opens(db, "token of other") == "other"

    async def test_times_of_a_session_never_go_back(self, db):
        await insert(db, session("mine"), session("other"))
        await session_records.touch_sessions(db, [Seen("mine", NOW + 5, NOW + 2000), Seen("mine", NOW + 7, NOW + 1500)])
        await session_records.touch_sessions(db, [Seen("mine", NOW + 6, NOW + 1000), Seen("unknown", NOW, NOW)])
        found = await session_records.find_session(db, "mine")
        assert (found.created_at, found.last_seen_at, found.expires_at) == (NOW, NOW + 7, NOW + 2000)
        assert await opens(db, "token of other", NOW + 1000) is None

    async def test_a_token_in_anothers_place_ends_that_when_it_is_used(self, db):
        await insert(db, session("mine", expires_at=NOW + 2 * token_records.REPLACED_US))
        for new in ("new", "newer"):
            await token_records.insert(db, new, "mine", NOW + 5, replaces_hash="token of mine")
        assert [await opens(db, token) for token in ("token of mine", "new", "newer")] == ["mine"] * 3
        assert await token_records.count_devices(db, "mine") == 1
        late = NOW + 5 + token_records.REPLACED_US
        assert await opens(db, "token of mine", late - 1) == "mine"
        assert [await opens(db, token, late) for token in ("token of mine", "new", "newer")] == [None, "mine", "mine"]
        assert (await token_records.find_session(db, "new", NOW)).replaces_hash == "token of mine"
        for _ in range(2):
            used = await db.transaction(lambda unit: token_records.use(unit, "new", NOW))
            assert used.id == "mine"
            assert [await opens(db, token) for token in ("token of mine", "new", "newer")] == [None, "mine", None]
        assert (await token_records.find_session(db, "new", NOW)).replaces_hash is None
        for token in ("newer", "unknown"):
            assert await db.transaction(lambda unit, token=token: token_records.use(unit, token, NOW)) is None

    async def test_a_session_may_have_several_tokens(self, db):
        await insert(db, session("mine"))
        await token_records.insert(db, "second", "mine", NOW, replaces_hash=None)
        assert [await opens(db, token) for token in ("token of mine", "second")] == ["mine", "mine"]
        assert await token_records.count_devices(db, "mine") == 2
        assert await token_records.count_devices(db, "unknown") == 0

    async def test_an_ended_session_opens_to_nobody_and_keeps_its_records(self, db):
        await insert(db, session("mine"), session("other"))
        await upload_records.insert_uploads(db, [upload(1)])
        await token_records.insert_code(db, "code", "mine", NOW + 10)
        for now_us in (NOW + 1, NOW + 2):
            await db.transaction(lambda unit, now_us=now_us: token_records.end_session(unit, "mine", now_us))
        assert await opens(db, "token of mine") is None
        assert await taken(db, "code", NOW) is None
        assert await opens(db, "token of other") == "other"
        assert (await session_records.find_session(db, "mine")).ended_at == NOW + 1
        assert await everything(db) == [upload(1)]
        await session_records.touch_sessions(db, [Seen("mine", NOW + 9, NOW + 9000)])
        assert (await session_records.find_session(db, "mine")).expires_at == NOW + 1000

    async def test_an_operator_sees_the_sessions_seen_last(self, db):
        await insert(db, session("mine"), session("other"), session("third"))
        await session_records.touch_sessions(db, [Seen("other", NOW + 9, NOW + 9), Seen("third", NOW + 8, NOW + 9)])
        assert [each.id for each in await session_records.list_sessions(db, 2)] == ["other", "third"]
        assert await session_records.find_session(db, "unknown") is None

    # Linking.

    async def test_a_link_code_opens_its_session_once(self, db):
        await insert(db, session("mine"))
        await token_records.insert_code(db, "code", "mine", NOW + 10)
        assert await taken(db, "other code", NOW) is None
        assert await taken(db, "code", NOW) == "mine"
        assert await taken(db, "code", NOW) is None

    @pytest.mark.parametrize(("expires_at", "now_us"), [(NOW + 10, NOW + 10), (NOW + 9999, NOW + 1000)])
    async def test_a_link_code_opens_nothing_when_it_or_its_session_is_over(self, db, expires_at, now_us):
        await insert(db, session("mine"))
        await token_records.insert_code(db, "code", "mine", expires_at)
        assert await taken(db, "code", now_us) is None

    async def test_a_used_code_is_known_to_its_user(self, db):
        await insert(db, session("mine"), session("into"))
        await token_records.insert_code(db, "code", "mine", NOW + 10)
        assert await token_records.find_code(db, "code", NOW) == "mine"
        assert await token_records.find_code(db, "code", NOW + 10) is None
        used = await token_records.take_code(db, "code", NOW)
        assert await token_records.find_code(db, "code", NOW) is None
        await token_records.remember_code(db, "code", "their token", used)
        assert await token_records.find_used_code(db, "code", {"another", "their token"}, NOW + 9) == (
            "their token",
            "mine",
        )
        assert await token_records.find_used_code(db, "code", {"another"}, NOW) is None
        assert await token_records.find_used_code(db, "other code", {"their token"}, NOW) is None
        await db.transaction(lambda unit: merge_records.merge(unit, "mine", "into", NOW))
        assert await token_records.find_used_code(db, "code", {"their token"}, NOW) == ("their token", "into")
        assert await token_records.find_used_code(db, "code", {"their token"}, NOW + 10) is None
        assert await token_records.forget_codes(db, NOW + 9, 9) == 0
        assert await token_records.find_used_code(db, "code", {"their token"}, NOW)
        assert await token_records.forget_codes(db, NOW + 10, 9) == 1
        assert await token_records.find_used_code(db, "code", {"their token"}, NOW) is None

    async def test_only_one_of_many_takes_a_code(self, db):
        await insert(db, session("mine"))
        await token_records.insert_code(db, "code", "mine", NOW + 10)
        by = await asyncio.gather(*(taken(db, "code") for _ in range(10)))
        assert sorted(by, key=str) == [None] * 9 + ["mine"]

    async def test_a_session_that_joins_another_brings_all_its_records(self, db):
        await insert(db, session("old"), session("mine"), session("other"))
        await upload_records.insert_uploads(db, [upload(1, "old"), upload(2, "mine"), upload(3, "other")])
        await token_records.insert_code(db, "code", "old", NOW + 10)
        assert await db.transaction(lambda unit: merge_records.merge(unit, "old", "mine", NOW + 1))
        assert await everything(db) == [upload(2), upload(1)]
        assert await everything(db, "old") == []
        assert await everything(db, "other") == [upload(3, "other")]
        assert await opens(db, "token of old") == "mine"
        assert await taken(db, "code", NOW) == "mine"
        old = await session_records.find_session(db, "old")
        assert (old.ended_at, old.merged_into) == (NOW + 1, "mine")

    async def test_an_upload_in_flight_lands_where_its_session_went(self, db):
        await insert(db, session("oldest"), session("old"), session("mine"))
        await db.transaction(lambda unit: merge_records.merge(unit, "oldest", "old", NOW))
        await db.transaction(lambda unit: merge_records.merge(unit, "old", "mine", NOW))
        await upload_records.insert_uploads(db, [upload(1, "oldest"), upload(2, "old"), upload(3, "unknown")])
        assert await everything(db) == [upload(2), upload(1)]
        assert await everything(db, "unknown") == [upload(3, "unknown")]

    @pytest.mark.parametrize("pair", [("mine", "mine"), ("mine", "ended"), ("ended", "mine"), ("mine", "unknown")])
    async def test_only_two_live_sessions_join(self, db, pair):
        await insert(db, session("mine"), session("ended"))
        await db.transaction(lambda unit: token_records.end_session(unit, "ended", NOW))
        assert not await db.transaction(lambda unit: merge_records.merge(unit, *pair, NOW))
        assert await opens(db, "token of mine") == "mine"

    async def test_an_expired_session_is_joined_by_none(self, db):
        await insert(db, session("mine"), session("other", expires_at=NOW + 5))
        assert not await db.transaction(lambda unit: merge_records.merge(unit, "mine", "other", NOW + 5))

    async def test_two_sessions_joining_each_other_leave_one_that_has_everything(self, db):
        await asyncio.gather(*(db.ping() for _ in range(8)))  # opens the connections, so that they do meet
        for pair in range(0, 40, 2):
            a, b = f"session {pair}", f"session {pair + 1}"
            await insert(db, session(a), session(b))
            await upload_records.insert_uploads(db, [upload(pair, a), upload(pair + 1, b)])
            joined = await asyncio.gather(
                db.transaction(lambda unit, a=a, b=b: merge_records.merge(unit, a, b, NOW)),
                db.transaction(lambda unit, a=a, b=b: merge_records.merge(unit, b, a, NOW)),
            )
            assert sorted(joined) == [False, True]
            [alive] = {await opens(db, f"token of {a}"), await opens(db, f"token of {b}")}
            assert [each.size for each in await everything(db, alive)] == [pair + 1, pair]

    async def test_no_upload_is_left_behind_by_sessions_that_join_meanwhile(self, db):
        names = [f"session {n}" for n in range(6)]
        await insert(db, *map(session, names))
        chances = random.Random(3)

        async def send(number):
            await upload_records.insert_uploads(
                db, [upload(number, chances.choice(names)), upload(number + 500, chances.choice(names))]
            )

        async def join(name):
            await db.transaction(lambda unit: merge_records.merge(unit, name, names[0], NOW))

        work = [send(number) for number in range(60)] + [join(name) for name in names[1:]]
        chances.shuffle(work)
        await asyncio.gather(*work)
        assert len(await everything(db, names[0])) == 120

    async def test_records_of_a_merged_session_follow_it(self, db):
        """As the code before left it: it moved what it saw, and its sweep the rest."""
        await insert(db, session("old"), session("mine"))
        await upload_records.insert_uploads(db, [upload(1, "old")])

        async def end(unit):
            await unit.run("end_merged_session", session_id="old", into_id="mine", now_us=NOW)

        await db.transaction(end)
        assert await merge_records.list_pending(db, NOW, 9) == {"old": False}
        await SessionMerges(db, now_us=lambda: NOW).finish()
        assert await everything(db) == [upload(1)]

    # Sweeping.

    async def test_expiry_ends_what_is_over_and_keeps_its_records(self, db):
        await insert(db, session("mine"), session("over", expires_at=NOW + 5), session("ended"))
        await upload_records.insert_uploads(db, [upload(1, "over")])
        for code, owner, expires_at in (("1", "mine", NOW + 9), ("2", "mine", NOW + 5), ("3", "over", NOW + 9)):
            await token_records.insert_code(db, code, owner, expires_at)
        await db.transaction(lambda unit: token_records.end_session(unit, "ended", NOW + 1))
        assert await db.transaction(lambda unit: session_records.expire_sessions(unit, NOW + 5, 9)) == 1
        assert await db.transaction(lambda unit: session_records.expire_sessions(unit, NOW + 6, 9)) == 0
        async for _ in token_records.forget_tokens(db, 1):
            pass
        assert [await token_records.forget_codes(db, NOW + 5, 9) for _ in range(2)] == [1, 0]
        assert [await opens(db, f"token of {name}") for name in ("mine", "over", "ended")] == ["mine", None, None]
        assert (await session_records.find_session(db, "over")).ended_at == NOW + 5
        assert (await session_records.find_session(db, "ended")).ended_at == NOW + 1
        assert await everything(db, "over") == [upload(1, "over")]
        assert [await taken(db, code, NOW) for code in "123"] == ["mine", None, None]

    async def test_only_sessions_that_nothing_refers_to_are_deleted(self, db):
        names = ("live", "late", "empty", "sender", "old", "joined")
        await insert(db, *map(session, names))
        await upload_records.insert_uploads(db, [upload(1, "sender")])

        async def work(unit):
            await merge_records.merge(unit, "old", "joined", NOW + 1)
            for name, ended_at in (("late", NOW + 9), ("empty", NOW + 1), ("sender", NOW + 1), ("joined", NOW + 1)):
                await token_records.end_session(unit, name, ended_at)

        await db.transaction(work)
        # Page by page: the one that joined another goes when the other has gone.
        assert await empty_sessions(db, NOW + 9) == 3
        assert [name for name in names if await session_records.find_session(db, name)] == ["live", "late", "sender"]

    async def test_the_row_of_a_session_that_joined_another_stays_as_long_as_that_one(self, db):
        await insert(db, session("old"), session("joined"))
        await db.transaction(lambda unit: merge_records.merge(unit, "old", "joined", NOW + 1))
        assert await empty_sessions(db, NOW + 10**15) == 0
        await upload_records.insert_uploads(db, [upload(1, "old")])
        assert await everything(db, "joined") == [upload(1, "joined")]

    # Uploads that come in several requests.

    async def test_a_resumable_upload_comes_back_as_it_was_recorded(self, db):
        part = resource(1, is_part=True, upload=None, length=5, metadata="filename YQ==, empty")
        final = resource(2, parts=(part.key_hash,), concat="final;/a /b", digests=Digests("0" * 64, "1" * 128))
        for _ in range(2):
            for each in (part, final):
                await db.transaction(lambda unit, each=each: resumable_records.insert(unit, each, None))
        assert [await resumable_records.find(db, each.key_hash) for each in (part, final)] == [part, final]
        assert await resumable_records.list_these(db, [part.key_hash, "unknown"]) == {part.key_hash: part}
        assert await resumable_records.list_waiting(db, part) == [final]
        assert await resumable_records.list_waiting(db, final) == []
        assert await resumable_records.find(db, "unknown") is None
        assert await everything(db) == [final.upload]

    async def test_the_newest_writer_acquires_the_lock_once_the_previous_releases_it(self, db):
        key_hash = await inserted(db, resource(1))
        assert await resumable_records.acquire(db, key_hash, holder_id="one", now_us=NOW) == 1
        assert await resumable_records.acquire(db, key_hash, holder_id="two", now_us=NOW + 1) == 2
        assert await resumable_records.acquire(db, key_hash, holder_id=None, now_us=NOW + 2) == 3
        assert not await resumable_records.preempt(db, key_hash, 2, holder_id="two", now_us=NOW + 3)
        for other in (Holder(2, "two"), Holder(1, "two"), Holder(2, "one")):
            await resumable_records.release(db, key_hash, other)
        found = await resumable_records.find(db, key_hash)
        assert (found.holder, found.holder_seen_at) == (Holder(1, "one"), NOW)
        assert await resumable_records.preempt(db, key_hash, 3, holder_id="three", now_us=NOW + 4)
        assert (await resumable_records.find(db, key_hash)).holder == Holder(3, "three")
        await resumable_records.release(db, key_hash, Holder(3, "three"))
        assert (await resumable_records.find(db, key_hash)).holder is None
        assert await resumable_records.acquire(db, "unknown", holder_id="one", now_us=NOW) is None

    async def test_only_the_holder_of_the_writer_lock_commits(self, db):
        key_hash = await inserted(db, resource(1, length=9))
        await resumable_records.acquire(db, key_hash, holder_id="one", now_us=NOW)
        found = await resumable_records.find(db, key_hash)
        further = replace(found, offset=4, digest_state="state", file_fence=1, expires_at=NOW + 7)

        async def commit(held_by):
            return await db.transaction(lambda unit: resumable_records.commit(unit, further, held_by))

        for other in (Holder(2, "one"), Holder(1, "other")):
            assert not await commit(other)
        assert await resumable_records.find(db, key_hash) == found
        assert await commit(Holder(1, "one"))
        grown = found.upload.model_copy(update={"size": 4})
        assert await resumable_records.find(db, key_hash) == replace(further, upload=grown)
        assert await everything(db) == [grown]

    async def test_an_upload_ends_once_but_a_completed_one_can_be_cancelled(self, db):
        key_hash = await inserted(db, resource(1))

        async def end(ended_as, error=None, due_us=MAX_SIZE):
            found = await resumable_records.find(db, key_hash)
            return await db.transaction(
                lambda unit: resumable_records.end(
                    unit, found, ended_as, remembered_until_us=NOW + 9, error=error, due_us=due_us
                )
            )

        await resumable_records.acquire(db, key_hash, holder_id="one", now_us=NOW)
        assert not await end("expired", due_us=NOW)
        assert await end("completed")
        assert not await end("failed", Failure(code="lost", detail=""))
        assert await end("cancelled", Failure(code="gone", detail=""))
        found = await resumable_records.find(db, key_hash)
        assert (found.ended_as, found.holder, found.expires_at) == ("cancelled", None, NOW + 9)
        assert await resumable_records.acquire(db, key_hash, holder_id="two", now_us=NOW) is None
        assert await resumable_records.list_files(db, [found.upload_id, "unknown"]) == {
            found.upload_id: resumable_records.FileOf(found.upload_id, None, found.fence)
        }
        assert await resumable_records.forget_ended(db, NOW + 8, 9) == 0
        assert await resumable_records.forget_ended(db, NOW + 9, 9) == 1
        assert await resumable_records.find(db, key_hash) is None

    async def test_resumable_uploads_follow_a_session_that_joins_another(self, db):
        await insert(db, session("mine"), session("into"))
        early = await inserted(db, resource(1))
        await db.transaction(lambda unit: merge_records.merge(unit, "mine", "into", NOW))
        late = await inserted(db, resource(2))
        assert {(await resumable_records.find(db, each)).session_id for each in (early, late)} == {"into"}
