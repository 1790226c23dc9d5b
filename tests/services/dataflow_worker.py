"""Run a pipeline that a launcher has staged: `python dataflow_worker.py gs://BUCKET/.../pipeline.pb RESULT.json`.

All that it has of the launcher is in that object and in what the pipeline reads. RESULT gets our counters; a failure goes to
standard error, as text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.runtime import counters
from pipelines.storage.files import read_bytes


def staged(url: str) -> Any:
    """The pipeline in the bucket."""
    data = read_bytes(url)
    assert data is not None, url
    return beam_runner_api_pb2.Pipeline.FromString(data)


def main() -> None:
    url, result = sys.argv[1:]
    pipeline = staged(url)
    for environment in pipeline.components.environments.values():  # this process is the container
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    ran = FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))
    ran.wait_until_finish()
    Path(result).write_text(json.dumps(counters.read_counters(ran)))


if __name__ == "__main__":
    main()
