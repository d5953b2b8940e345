"""Each night at one in Airflow 3. A shell submits: the Ray providers are old or deprecated.

The worker that runs the task needs this checkout in /opt/bertray, Ray's client in its venv, and the
token in a file that only it may read.
"""

from datetime import timedelta

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="bertray",
    schedule="0 1 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="Europe/Berlin"),
    catchup=False,  # a night does all that earlier ones left
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=10)},
):
    BashOperator(
        task_id="score",
        # The space keeps Airflow from taking the name for that of a template file.
        bash_command="/opt/bertray/deploy/schedule/submit.sh night.yaml ",
        env={
            "PATH": "/opt/bertray/venv/bin:/usr/bin:/bin",
            "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
            "RAY_AUTH_TOKEN_PATH": "/etc/bertray/ray-token",
        },
        execution_timeout=timedelta(hours=8),
    )
