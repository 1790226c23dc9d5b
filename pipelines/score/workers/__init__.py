"""Workers of this machine, each a process with a model of its own: `runner.workers`."""

from pipelines.score.workers.launcher import Job, score_ahead

__all__ = ["Job", "score_ahead"]
