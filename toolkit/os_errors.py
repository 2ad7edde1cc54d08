"""What the operating system refuses, as one sentence with the path and the remedy."""

import errno
import os

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What may happen in the middle of a command that began well."""

REMEDIES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file; name another path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "name another path",
    errno.ENOTEMPTY: "name another path",
    errno.ENAMETOOLONG: "use shorter names",
    errno.ELOOP: "a link there leads back to itself; name another path",
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "free some space, or name a place on another disk",
    errno.EDQUOT: "free some space, or name a place on another disk",
    errno.EFBIG: "raise the limit of the size of files (`ulimit -f`), or name another place",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENFILE: "close some programs: the system has too many open files",
    errno.ENOMEM: "close some programs, or use a machine with more memory",
}


def sentence(error: OSError) -> str:
    """What happened, where, and what to do about it."""
    if error.errno is None:
        return str(error) or type(error).__name__
    path = error.filename2 if error.filename2 is not None else error.filename
    place = "" if path is None or isinstance(path, int) else f"{os.fsdecode(path)}: "
    reason = error.strerror or os.strerror(error.errno)
    return f"{place}{reason}: {REMEDIES.get(error.errno, 'check this place and try again')}"
