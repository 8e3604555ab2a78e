"""The clock. Times are whole UTC seconds since 1970."""

import time

__all__ = ["utc_timestamp"]


def utc_timestamp() -> int:
    return int(time.time())
