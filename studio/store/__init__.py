"""What outlives every process: jobs, the commands they are given, and the adapters of the library, in one SQLite file.

Imports no torch: the web server's process and `studio jobs` use it.
"""

from studio.store.database import Store
from studio.store.requests import Drawing, FuseRequest, JobRequest, SampleRequest, TrainRequest, Use
from studio.store.states import Ask, State
from studio.store.tables import Command, Job, LibraryAdapter, Summary

__all__ = [
    "Ask",
    "Command",
    "Drawing",
    "FuseRequest",
    "Job",
    "JobRequest",
    "LibraryAdapter",
    "SampleRequest",
    "State",
    "Store",
    "Summary",
    "TrainRequest",
    "Use",
]
