"""The execution of a job, whatever it does: Beam's options, running to the end, progress, counters and log lines."""
