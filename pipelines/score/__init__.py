"""Scores units into score files, the durable boundary of a run."""
