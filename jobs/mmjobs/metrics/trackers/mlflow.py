"""MLflow: the server that MLFLOW_TRACKING_URI names, where it answers, otherwise a file store in the run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from mmjobs.metrics.trackers.tracker import TrackedRun

PACKAGE = "mlflow"
_RUN = "mmlaunch.run"
"""The tag by which a later attempt finds the run again."""
_LONGEST = 500
"""Characters of a parameter that older servers take."""


def open_tracker(run: TrackedRun) -> Mlflow:
    """The run that has this name as a tag, or a new one."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # files need neither a server nor a database
    from mlflow import MlflowClient

    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    remote = server.startswith("http")
    online = run.reaches(server, allowed=remote) if remote else bool(server) and run.online != "never"
    client = MlflowClient(server if online else run.folder.absolute().as_uri())
    experiment = client.get_experiment_by_name(run.project)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(run.project)
    earlier = client.search_runs([number], f"tags.`{_RUN}` = '{run.name}'", max_results=1)
    if earlier:
        client.set_terminated(earlier[0].info.run_id, "RUNNING")
        return Mlflow(client, earlier[0].info.run_id)
    tags = {_RUN: run.name, **{name: str(value) for name, value in run.options.items()}}
    new = client.create_run(number, run_name=run.name, tags=tags)
    for name, value in flat(run.config).items():
        client.log_param(new.info.run_id, name, str(value)[:_LONGEST])
    return Mlflow(client, new.info.run_id)


class Mlflow:
    """A run of MLflow."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client, self._run_id = client, run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        """All points of a step in one message."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run_id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, done: bool) -> None:
        """A run that is not done yet is scheduled for its next attempt."""
        self._client.set_terminated(self._run_id, "FINISHED" if done else "SCHEDULED")


def flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{above}{name}.")
        else:
            values[f"{above}{name}"] = value
    return values
