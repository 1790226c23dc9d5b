"""An example for Airflow: score on GPU workers, then select on machines without, from the Flex template of deploy/build.sh.

Deferrable: while a job runs, no worker slot of Airflow is taken. Each task may be tried again: what is scored stays, and a
finished output is found finished. Variables of Airflow: `bestkept_project`, `bestkept_region`, `bestkept_bucket` and
`bestkept_worker` (a service account). The bucket holds configs/dataflow_gpu.yaml, filled in. Needs
apache-airflow-providers-google. Not run on the service.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from airflow import DAG
from airflow.providers.google.cloud.operators.dataflow import DataflowStartFlexTemplateOperator

PROJECT, REGION = "{{ var.value.bestkept_project }}", "{{ var.value.bestkept_region }}"
BUCKET = "gs://{{ var.value.bestkept_bucket }}"


def job(command: str) -> dict[str, Any]:
    """The request that starts one command; `select` asks for no GPU, though the configuration names one."""
    return {
        "launchParameter": {
            "jobName": f"bestkept-{command}-{{{{ ds_nodash }}}}-{{{{ ti.try_number }}}}",
            "containerSpecGcsPath": f"{BUCKET}/templates/bestkept.json",
            "parameters": {
                "command": command,
                "config": f"{BUCKET}/configs/dataflow_gpu.yaml",
                "input_path": f"{BUCKET}/corpus/{{{{ ds }}}}/*.parquet",
                "output_path": f"{BUCKET}/curated/{{{{ ds }}}}",
            },
            "environment": {
                "tempLocation": f"{BUCKET}/tmp",
                "serviceAccountEmail": "{{ var.value.bestkept_worker }}",
            },
        }
    }


def start(command: str) -> DataflowStartFlexTemplateOperator:
    return DataflowStartFlexTemplateOperator(
        task_id=command,
        project_id=PROJECT,
        location=REGION,
        body=job(command),
        append_job_name=False,
        deferrable=True,
        retries=2,
        retry_delay=timedelta(minutes=10),
    )


with DAG(
    dag_id="bestkept",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["bestkept"],
):
    start("score") >> start("select")
