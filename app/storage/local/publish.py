"""Publishing: a commit group of staged files gets its names, in the order that may never change."""

import os
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from app.errors import UploadError
from app.metrics import Metrics
from app.storage.local import syscalls
from app.storage.local.io_errors import reason
from app.storage.local.staged import LocalStaged, Staging
from app.storage.local.unrecorded import UnderWay

log = structlog.stdlib.get_logger("waybill.storage")

FLUSH_EACH: Final = 2
"""Up to so many files of a commit group are flushed one by one; above, one flush of the file system is cheaper."""


class GroupPublisher:
    """Publishes commit groups, all in one thread: an error of syncfs must reach the group that it is about."""

    def __init__(self, staging: Staging, under_way: UnderWay, metrics: Metrics) -> None:
        self._staging = staging
        self._under_way = under_way
        self._metrics = metrics

    def publish(self, group: Sequence[LocalStaged]) -> dict[str, UploadError]:
        """Publish a commit group: stage → note → data durable → rename → names durable. The order may never change.

        A rename before the data is durable can come back from a power cut as an empty
        file under its final name. A flush that fails is final for every file it covered:
        the kernel forgets the error and the next flush would wrongly succeed, so it is never repeated.
        """
        refused: dict[str, UploadError] = {}
        written = self._each(group, LocalStaged.to_disk, refused)
        # Behind the files, which need the disk's last free inode more than a note does.
        unrecorded = [staged.key for staged in written if not staged.has_record]
        self._under_way.begin(unrecorded, flushed_together=len(written) > FLUSH_EACH)
        if written and self._staging.durable:
            written = self._together(written, self._flush_data, refused)
        renamed = self._each(written, self._rename, refused)
        if renamed and self._staging.durable:
            renamed = self._together(renamed, self._flush_names, refused)
        self._each(renamed, LocalStaged.close, refused)
        return refused

    def _each(
        self, group: Sequence[LocalStaged], step: Callable[[LocalStaged], None], refused: dict[str, UploadError]
    ) -> list[LocalStaged]:
        """Do one step for each file; refuse and remove those that fail."""
        passed = []
        for staged in group:
            try:
                step(staged)
            except Exception as error:
                self._refuse(staged, error, refused)
            else:
                passed.append(staged)
        return passed

    def _together(
        self,
        group: list[LocalStaged],
        step: Callable[[Sequence[LocalStaged]], None],
        refused: dict[str, UploadError],
    ) -> list[LocalStaged]:
        """Do one step for all files together; if it fails, refuse and remove all."""
        try:
            step(group)
        except Exception as error:
            for staged in group:
                self._refuse(staged, error, refused)
            return []
        return group

    def _refuse(self, staged: LocalStaged, error: Exception, refused: dict[str, UploadError]) -> None:
        refused[staged.key] = self._staging.trust.refusal(error, staged.key, staged.size)
        if staged.named:  # a name that it did not get may be another file's
            try:
                staged.lose_name()
            except OSError as problem:
                log.error("a refused file keeps its name", key=staged.key, error=reason(problem))
                staged.discard()
                return
        self._under_way.end([staged.key])
        staged.discard()

    def _flush_data(self, group: Sequence[LocalStaged]) -> None:
        began = self._metrics.stopwatch()
        if len(group) > FLUSH_EACH:
            syscalls.syncfs(self._staging.directories.root_fd)
            for staged in group:
                staged.written_back()
        else:
            for staged in group:
                staged.flush()
        self._metrics.stages["data_flush"].observe(self._metrics.stopwatch() - began)

    def _rename(self, staged: LocalStaged) -> None:
        staged.take_name()

    def _flush_names(self, group: Sequence[LocalStaged]) -> None:
        began = self._metrics.stopwatch()
        if len(group) > FLUSH_EACH:
            syscalls.syncfs(self._staging.directories.root_fd)
        else:
            for shard_fd in {self._staging.directories.shard_fd(staged.key) for staged in group}:
                os.fsync(shard_fd)
        self._metrics.stages["names_flush"].observe(self._metrics.stopwatch() - began)
