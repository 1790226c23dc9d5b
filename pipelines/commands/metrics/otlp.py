"""Metrics for an OpenTelemetry collector, sent by its SDK and set up by its variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, ...)."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Mapping, Sequence

from pipelines.commands.metrics.numbers import Ended, Metric
from pipelines.commands.metrics.sinks import Job, is_installed

log = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Otlp:
    """A collector that receives all metrics when a command ends."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.name, self._labels = _first(_ENDPOINTS) or "", labels

    def begin(self, job: Job) -> None: ...

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
        from opentelemetry.sdk.resources import Resource

        service = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "bestkept"}
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader], Resource.create({**service, "service.version": ended.version}))
        meter = provider.get_meter("bestkept", ended.version)
        gauges = {one.name: meter.create_gauge(one.full_name, one.unit, one.help) for one in metrics}
        for one in metrics:
            gauges[one.name].set(one.number, {**self._labels, **one.labels})
        exporter = importlib.import_module(_exporter_module()).OTLPMetricExporter()
        try:
            if exporter.export(reader.get_metrics_data()) is not MetricExportResult.SUCCESS:
                raise ConnectionError("it rejected the metrics")
        finally:
            exporter.shutdown()
            provider.shutdown()


def find_otlp(labels: Mapping[str, str]) -> Otlp | None:
    """Return the collector that the environment names, if any.

    If the SDK is missing, log a line and return None: platforms set these variables for all programs.
    """
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if off or os.environ.get("OTEL_METRICS_EXPORTER", "otlp") != "otlp" or _first(_ENDPOINTS) is None:
        return None
    if not is_installed("opentelemetry.sdk.metrics") or not is_installed(_exporter_module()):
        install = "opentelemetry-exporter-otlp-proto-grpc" if _is_grpc() else "'bestkept[metrics]'"
        log.info(
            "an OTLP endpoint is set, but OpenTelemetry is not installed: no metrics are sent; run: pip install %s",
            install,
        )
        return None
    return Otlp(labels)


def _exporter_module() -> str:
    return f"opentelemetry.exporter.otlp.proto.{'grpc' if _is_grpc() else 'http'}.metric_exporter"


def _is_grpc() -> bool:
    return _first(_PROTOCOLS) == "grpc"


def _first(names: Sequence[str]) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
