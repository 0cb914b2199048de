"""Whether the disk itself fails. SQLite calls a read that fails with EIO "malformed" (SQLITE_IOERR_CORRUPTFS), as it calls a damaged page.

https://sqlite.org/rescode.html#ioerr_corruptfs
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

_PAGE = 4096  # a multiple of every disk's block, as O_DIRECT needs it; a mapping is aligned to it


def disk_fails(path: Path) -> bool:
    """Whether the beginning of a file can't be read from its disk just now. A bad sector elsewhere in it is not found.

    Read past the kernel's cache, which may hold what the disk gives no more. False where a file system can't do that.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            with mmap.mmap(-1, _PAGE) as page:
                os.preadv(descriptor, [page], 0)
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.errno != errno.EINVAL
    return False
