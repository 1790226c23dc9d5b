"""Metrics of a command for other systems: a Prometheus textfile, OTLP, OpenLineage events, MLflow and Trackio."""
