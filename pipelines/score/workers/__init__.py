"""Worker processes of this machine, each with its own model: `runner.workers`."""

from pipelines.score.workers.launcher import Job, run_workers

__all__ = ["Job", "run_workers"]
