"""Run a pipeline that a launcher has staged: `python dataflow_worker.py gs://BUCKET/.../pipeline.pb RESULT.json [ENGINE]`.

Only that object and the files that the pipeline reads come from the launcher. The pipeline runs in this process, or on a portable
engine: ENGINE is JSON with the options that the service received and those of the engine. Our counters are written to RESULT;
a failure is written to standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns, python_urns
from apache_beam.portability.api import beam_runner_api_pb2, endpoints_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipelines.runtime import counters
from pipelines.storage.files import read_bytes


def staged(url: str) -> Any:
    """The pipeline in the bucket."""
    data = read_bytes(url)
    assert data is not None, url
    return beam_runner_api_pb2.Pipeline.FromString(data)


def run_here(pipeline: Any) -> Any:
    for environment in pipeline.components.environments.values():  # this process is the container
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
        del environment.dependencies[:]
    return FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([]))


def run_on(engine: dict[str, Any], pipeline: Any) -> Any:
    """Each container becomes a worker of the engine's pool; hints, staging and options are its business."""
    pool = endpoints_pb2.ApiServiceDescriptor(url=engine["environment_config"])
    payload = beam_runner_api_pb2.ExternalPayload(endpoint=pool).SerializeToString()
    for environment in pipeline.components.environments.values():
        environment.urn, environment.payload = common_urns.environments.EXTERNAL.urn, payload
    options = {  # numbers come as floats
        name: int(value) if isinstance(value, float) else value
        for name, value in engine.items()
        if not isinstance(value, dict)
    }
    return PortableRunner().run_portable_pipeline(pipeline, PipelineOptions.from_dictionary(options))


def main() -> None:
    url, result, *engine = sys.argv[1:]
    ran = run_on(json.loads(engine[0]), staged(url)) if engine else run_here(staged(url))
    ran.wait_until_finish()
    Path(result).write_text(json.dumps(counters.read_counters(ran)))


if __name__ == "__main__":
    main()
