"""Units → score files, the durable boundary of a run."""
