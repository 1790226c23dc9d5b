"""OpenLineage events of a run, sent by OpenLineage's client library as configured for it (`OPENLINEAGE_URL` or a file)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pipelines.commands.metrics.numbers import Ended, Metric
from pipelines.commands.metrics.sinks import Job, require_package
from pipelines.runtime.machine import tool_version
from pipelines.storage.canonical_json import digest

_PRODUCER = "https://pypi.org/project/bestkept/"
_FILES = ("openlineage.yml", "~/.openlineage/openlineage.yml")


class Lineage:
    """A receiver of START, and of COMPLETE or FAIL. Datasets are directories, named as OpenLineage names files and objects."""

    def __init__(self, command: str) -> None:
        from openlineage.client.uuid import generate_new_uuid

        self.name, self._command = "OpenLineage", command
        self._run_id = str(generate_new_uuid())
        self._client: Any = None

    def begin(self, job: Job) -> None:
        self._emit("START", job, {}, {})

    def end(self, job: Job | None, ended: Ended, metrics: Sequence[Metric], error: str | None) -> None:
        from openlineage.client.generated.dataset_version_dataset import DatasetVersionDatasetFacet
        from openlineage.client.generated.error_message_run import ErrorMessageRunFacet
        from openlineage.client.generated.output_statistics_output_dataset import OutputStatisticsOutputDatasetFacet

        if job is None:
            return
        if error is not None:
            self._emit("FAIL", job, {"errorMessage": ErrorMessageRunFacet(error, "PYTHON")}, {})
            return
        if not ended.counts and not ended.members:  # the runner continues alone
            self._emit("RUNNING", job, {}, {})
            return
        output: dict[str, Any] = {}
        if ended.manifest:
            version = job.output_version or digest(ended.manifest)[:16]
            shards = ended.manifest["shards"]
            written = OutputStatisticsOutputDatasetFacet(
                sum(shard["rows"] for shard in shards), sum(shard["bytes"] for shard in shards), len(shards)
            )
            output = {
                "facets": {"version": DatasetVersionDatasetFacet(version)},
                "outputFacets": {"outputStatistics": written},
            }
        self._emit("COMPLETE", job, {}, output)

    def _emit(self, state: str, job: Job, facets: dict[str, Any], output: dict[str, Any]) -> None:
        from openlineage.client import OpenLineageClient, event_v2
        from openlineage.client.generated.processing_engine_run import ProcessingEngineRunFacet

        self._client = self._client or OpenLineageClient()
        event_v2.set_producer(_PRODUCER)
        facets["processing_engine"] = ProcessingEngineRunFacet(tool_version(), "bestkept")
        event = event_v2.RunEvent(
            eventTime=datetime.now(UTC).isoformat(),
            eventType=event_v2.RunState[state],
            run=event_v2.Run(self._run_id, facets=facets),
            job=event_v2.Job(
                os.environ.get("OPENLINEAGE_NAMESPACE", "default"), f"bestkept.{self._command}.{job.root}"
            ),
            inputs=[event_v2.InputDataset(*dataset_name(place)) for place in job.inputs],
            outputs=[event_v2.OutputDataset(*dataset_name(job.root), **output)],
        )
        self._client.emit(event)
        if state != "START":
            self._client.close(10.0)


def find_lineage(command: str) -> Lineage | None:
    """Return the receiver that the environment or a configuration file of the client names, if any.

    Raises `ConfigError` if the client is not installed.
    """
    if os.environ.get("OPENLINEAGE_DISABLED", "").strip().lower() == "true":
        return None
    files = (os.environ.get("OPENLINEAGE_CONFIG") or _FILES[0], *_FILES)
    if not os.environ.get("OPENLINEAGE_URL") and not any(os.path.isfile(os.path.expanduser(name)) for name in files):
        return None
    require_package(
        "openlineage.client",
        needed_by="an OpenLineage event (OPENLINEAGE_URL or openlineage.yml is there; OPENLINEAGE_DISABLED=true sends none)",
        install="'bestkept[lineage]'",
    )
    return Lineage(command)


def dataset_name(place: str) -> tuple[str, str]:
    """(namespace, name) of a directory: `file` and the path if it is local, bucket and the rest of the path in an object store.

    The rules are in https://openlineage.io/docs/spec/naming/.
    """
    scheme, mark, rest = place.partition("://")
    if not mark or scheme in ("file", "local"):
        return "file", rest if mark else place
    bucket, _, name = rest.partition("/")
    return f"{scheme}://{bucket}", name or "/"
