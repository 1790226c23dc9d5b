"""The execution of a job of any kind: Beam's options, running to the end, progress, counters and log lines."""
