"""What can go wrong, named by what the reader should do about it.

    BulkscoreError
    ├── JobError       exit 2   mend the command line, the job file, or the output it points to
    ├── Incomplete     exit 3   look at the dead letters, or run again
    ├── Refused        exit 4   mend the credentials, the URL or the contract with the service
    ├── Held           exit 5   wait for the other run
    └── StorageFailed  exit 6   run the same command again when the cause is gone

Each carries one line for the user: what is wrong, where, and the next step. Every error pickles.
"""

from __future__ import annotations

from typing import ClassVar, Final

OK: Final = 0
DEFECT: Final = 1
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class BulkscoreError(Exception):
    """Something a user can cause and mend: shown as one line, never as a traceback."""

    exit_code: ClassVar[int] = DEFECT


class JobError(BulkscoreError):
    """The command line or the job file is wrong, or does not fit the output that is there."""

    exit_code = 2


class Incomplete(BulkscoreError):
    """More dead letters than allowed, a breach found by `verify`, or an output not finished."""

    exit_code = 3


class Refused(BulkscoreError):
    """The service or its IAM refuses the whole job."""

    exit_code = 4


class Held(BulkscoreError):
    """Another run of this job holds the output."""

    exit_code = 5


class StorageFailed(BulkscoreError):
    """Storage failed, a worker was lost, or the service stayed out: the same command resumes."""

    exit_code = 6
