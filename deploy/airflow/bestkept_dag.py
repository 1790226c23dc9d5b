"""An example for Airflow: every day the Flex template of deploy/build.sh scores the new files of a corpus and selects a version
of the output from the whole corpus; later tasks use the latest version.

The task is deferrable: a running job takes no worker slot of Airflow. Tasks may be retried, even after a successful job: scores
are kept, and for a finished version a job of one step is staged. A job is named by `run_id` and the number of the attempt, since
a run triggered by an asset has no logical date, and Dataflow refuses a second job with the name of a running one. The job itself
sets `latest.json`: the template's launcher does not wait, the operator does.
`bestkept clean` removes old versions, wherever bestkept is installed. Variables: `bestkept_project`, `bestkept_region`,
`bestkept_bucket` and `bestkept_worker` (a service account). The bucket contains a completed configs/dataflow_gpu.yaml. Needs the
providers google, apache-beam (imported by Dataflow's operators) and standard; `make airflow` parses it. Not run on the service.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from typing import Any

from airflow import DAG
from airflow.models import Variable
from airflow.providers.google.cloud.hooks.gcs import GCSHook
from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator
from airflow.providers.standard.operators.python import PythonOperator

PROJECT, REGION = "{{ var.value.bestkept_project }}", "{{ var.value.bestkept_region }}"
BUCKET = "gs://{{ var.value.bestkept_bucket }}"
ROOT = "curated"


def job_name(command: str, run_id: str, try_number: int) -> str:
    """The name of a job in Dataflow: lower-case letters, digits and hyphens."""
    run = re.sub(r"[^a-z0-9]+", "-", run_id.lower()).strip("-")
    return f"bestkept-{command}-{run[:200]}-{try_number}"


def job(command: str) -> dict[str, Any]:
    """The request that starts one command. One job scores and selects: two would list the corpus twice."""
    return {
        "launchParameter": {
            "jobName": f"{{{{ job_name('{command}', run_id, ti.try_number) }}}}",
            "containerSpecGcsPath": f"{BUCKET}/templates/bestkept.json",
            "parameters": {
                "command": command,
                "config": f"{BUCKET}/configs/dataflow_gpu.yaml",
                "input_path": f"{BUCKET}/corpus/*.parquet",
                "output_path": f"{BUCKET}/{ROOT}",
                "output_versions": "true",
            },
            "environment": {
                "tempLocation": f"{BUCKET}/tmp",
                "serviceAccountEmail": "{{ var.value.bestkept_worker }}",
            },
        }
    }


def latest() -> str:
    """The path of the latest version, as `bestkept latest` prints it, for tasks that train on it or copy it."""
    bucket = Variable.get("bestkept_bucket")
    pointer = json.loads(GCSHook().download(bucket_name=bucket, object_name=f"{ROOT}/latest.json"))
    return f"gs://{bucket}/{ROOT}/{pointer['path']}"


with DAG(
    dag_id="bestkept",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    user_defined_macros={"job_name": job_name},
    tags=["bestkept"],
):
    run = DataflowStartFlexTemplateOperator(
        task_id="run",
        project_id=PROJECT,
        location=REGION,
        body=job("run"),
        append_job_name=False,
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=10),
    )
    run >> PythonOperator(task_id="latest", python_callable=latest)
