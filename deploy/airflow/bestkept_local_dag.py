"""An example for Airflow without Dataflow: every day the task scores the new files of a corpus on its own machine, and selects a
version of the output from the whole corpus.

bestkept is in a separate environment, since its pins and Airflow's may conflict: on the machine of the worker, with the `queue`
of machines with a GPU, or, if tasks are pods, in the image of deploy/build.sh. A running task takes a slot; a killed task is
retried and keeps its scores. Exit codes that a retry does not cure fail at once; see docs/operating.md. Variables:
`bestkept_config` (a file) and `bestkept_output`. Needs Airflow 3 and the provider standard; `make airflow` parses it.
"""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

PROGRAM = "/opt/bestkept/bin/bestkept"
FOR_A_PERSON = (2, 3, 4, 6, 7)  # exit codes after which the same command fails again
CONFIG, OUTPUT = "{{ var.value.bestkept_config }}", "{{ var.value.bestkept_output }}"


def bestkept(*words: str) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run([PROGRAM, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode in FOR_A_PERSON:
        raise AirflowFailException(f"bestkept ended with {done.returncode}; its last error is above")
    if done.returncode:
        raise AirflowException(f"bestkept ended with {done.returncode}; the same command resumes")
    return done.stdout.strip()


with DAG(
    dag_id="bestkept_local",
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["bestkept"],
):
    run = PythonOperator(
        task_id="run",
        python_callable=bestkept,
        op_args=["run", CONFIG, f"output.path={OUTPUT}", "output.versions=true", "--json-logs"],
        retries=3,
        retry_delay=timedelta(minutes=1),
    )
    run >> PythonOperator(task_id="latest", python_callable=bestkept, op_args=["latest", OUTPUT])
