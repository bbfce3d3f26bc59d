"""Creates a run directory, completely or not at all."""

from __future__ import annotations

import errno
import getpass
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmlaunch.load import plugins
from mmlaunch.recipe.resolved import text_of
from mmlaunch.run import ledger, owner, pipeline
from mmlaunch.run.files import READ_ONLY, explained, publish
from mmlaunch.run.paths import RunPaths
from mmlaunch.schedulers.process import identity
from mmlaunch.submit import secrets, shards, snapshot
from mmlaunch.submit.prepare import Prepared

EXECUTABLE = 0o755


def create(prepared: Prepared) -> None:
    """Create the run directory. Raises `FileExistsError` when another submission has taken the name."""
    plan, texts = prepared.plan, prepared.texts
    values = secrets.values(plan.passed)
    resolved = text_of(plan.recipe)
    own = plugins.files(plan.recipe, prepared.plugin_folders)
    kept = {"the job script": texts.script, "deepspeed.json": texts.deepspeed, "the recipe": resolved}
    secrets.refuse({**kept, **own}, values)
    final = plan.run.root
    # If this process is killed, only this folder is left. Its name begins with a dot, so it is no run.
    aside = RunPaths(final.with_name(f".{final.name}.{os.getpid()}"))
    with explained("cannot create the run directory", but=FileExistsError):
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            _fill(aside, prepared, resolved, own, values | secrets.suspected())
            take(aside.root, final)
        except BaseException:
            shutil.rmtree(aside.root, ignore_errors=True)
            raise


def submitter() -> dict[str, Any]:
    """The user and the process that submit a run, as its owner file names them."""
    return {"by": getpass.getuser(), "time": round(time.time()), **identity(os.getpid())}


def take(aside: Path, final: Path) -> None:
    """Rename to the final name; refuse if that name exists."""
    try:
        aside.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(str(final)) from None
        raise


def _fill(
    run: RunPaths, prepared: Prepared, resolved: str, own: Mapping[str, bytes], values: Mapping[str, str]
) -> None:
    loaded, first = prepared.loaded, run.attempt(1)
    for folder in (first.logs, first.stacks, run.checkpoints, run.tensorboard):
        folder.mkdir(parents=True)
    if prepared.shares is None:
        run.job.mkdir()
        snapshot.snapshot(run.code)
    else:
        for shared in (prepared.shares.code, prepared.shares.job):
            (run.root / shared.name).symlink_to(Path("..", prepared.shares.root.name, shared.name))
    publish(run.recipe, secrets.redact(loaded.text, values))
    publish(run.resolved, resolved, READ_ONLY)
    packages = plugins.origins(prepared.plan.recipe, prepared.plugin_folders)
    publish(run.environment, snapshot.environment(prepared.plan.folder, loaded.path, values, packages))
    publish(first.script, prepared.texts.script, EXECUTABLE)
    publish(first.deepspeed, prepared.texts.deepspeed)
    publish(run.profile, prepared.plan.cluster.model_dump_json(indent=1, exclude_defaults=True) + "\n")
    snapshot.plugins(run, own)
    owner.take(run, 1, **submitter())
    facts = prepared.plan.facts
    if prepared.stage is not None:
        pipeline.write_membership(run, prepared.stage)
        facts["held"] = prepared.held
    if prepared.definition is not None:
        shards.fill(run, prepared.definition, facts, submitter())
    ledger.append(run.events, "submitted", **facts, submission=1)
    for folder in [run.root, *(path for path in run.root.rglob("*") if path.is_dir() and not path.is_symlink())]:
        folder.chmod(0o755)  # whatever the umask: others may read a run
