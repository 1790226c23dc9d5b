"""How a job is carried out, whatever it does: Beam's options, execution, progress, counters and log lines."""
