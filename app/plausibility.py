"""Plausibility: many contradictions between files and records mean a wrong database or a wrong directory.

After a restored backup, or with a volume that is not mounted, "cleaning up" would destroy what is left. So code that
finds files and records in contradiction asks here before anything is moved, marked or removed.
"""


def tolerable(of: int) -> int:
    """The number of contradictions among `of` that may be unrelated."""
    return max(10, of // 1000)


def too_many(found: int, of: int) -> bool:
    """Whether so many contradictions must have one common reason: more than is tolerable, or more than half.

    In a small store the tolerable number can be all there is; there the majority decides.
    """
    return found > tolerable(of) or 2 * found > of
