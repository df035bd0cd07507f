"""Is this the right database, the right directory? Contradictions in numbers mean that it is not.

After a restored backup or a volume that is not mounted, "cleaning up" would destroy what is left. So whoever finds
that files and records contradict each other asks here before anything is moved, marked or removed.
"""


def tolerable(of: int) -> int:
    """How many of so many may be wrong by themselves, and not all for one reason."""
    return max(10, of // 1000)


def too_many(found: int, of: int) -> bool:
    """Whether so many contradictions among so many have one reason, which is ours: more than is tolerable, or most.

    In a small store that tolerable number can be all there is; there the majority decides.
    """
    return found > tolerable(of) or 2 * found > of
