"""Parse the DAGs beside this file as Airflow does, and render their tasks without a logical date: `make airflow`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import airflow
from airflow.models import DagBag

EXPECTED = {"bestkept": ["run", "latest"], "bestkept_local": ["run", "latest"]}
RUN_ID = "asset_triggered__2026-11-30T13:00:00.123456+00:00_Ab3"
JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,1022}[a-z0-9])?")
VARIABLES = SimpleNamespace(
    bestkept_project="my-project",
    bestkept_region="us-central1",
    bestkept_bucket="my-bucket",
    bestkept_worker="worker@my-project.iam.gserviceaccount.com",
    bestkept_config="/etc/bestkept/nightly.yaml",
    bestkept_output="/srv/curated",
)


def rendered(task: Any) -> dict[str, Any]:
    """The fields of a task in a run triggered by an asset, which has no logical date and no data interval."""
    context = {"run_id": RUN_ID, "ti": SimpleNamespace(try_number=2), "var": {"value": VARIABLES}}
    task.render_template_fields({**context, "logical_date": None, "dag": task.dag})
    return {name: getattr(task, name) for name in ("body", "op_args", "project_id", "location") if hasattr(task, name)}


def main() -> int:
    bag = DagBag(dag_folder=str(Path(__file__).parent))
    mistakes = [f"{path}: {error}" for path, error in bag.import_errors.items()]
    tasks = {name: [task.task_id for task in dag.topological_sort()] for name, dag in sorted(bag.dags.items())}
    if tasks != EXPECTED:
        mistakes.append(f"expected {EXPECTED}")
    for name, dag in sorted(bag.dags.items()):
        for task in dag.topological_sort():
            fields = rendered(task)
            print(f"{name}.{task.task_id}: {fields}")
            if "{{" in str(fields):
                mistakes.append(f"{name}.{task.task_id} holds a template that was not rendered")
            job = fields.get("body", {}).get("launchParameter", {}).get("jobName")
            if job is not None and not JOB_NAME.fullmatch(job):
                mistakes.append(f"{job!r} is no name of a job")
    print("\n".join([f"Airflow {airflow.__version__}: {tasks}", *mistakes]))
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
