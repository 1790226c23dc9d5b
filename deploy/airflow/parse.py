"""Parse the DAG beside this file as Airflow does, and say what is in it: `make airflow`."""

from __future__ import annotations

import sys
from pathlib import Path

from airflow.models import DagBag

EXPECTED = {"bestkept": ["run", "latest"]}


def main() -> int:
    bag = DagBag(dag_folder=str(Path(__file__).parent / "bestkept_dag.py"))
    for path, error in bag.import_errors.items():
        print(f"{path}: {error}")
    found = {name: [task.task_id for task in dag.topological_sort()] for name, dag in bag.dags.items()}
    print(found)
    if bag.import_errors or found != EXPECTED:
        print(f"expected {EXPECTED}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
