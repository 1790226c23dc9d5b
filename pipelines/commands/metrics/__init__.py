"""Numbers of a command for machines: a Prometheus textfile, OTLP, OpenLineage events, MLflow and Trackio."""
