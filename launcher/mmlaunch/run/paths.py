"""The names of all files and folders inside a run directory. No other module joins these paths."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_CHECKPOINT = re.compile(r"step-(\d+)")
_CHECKPOINTS = "checkpoints"
SHARDS = "shards"
"""The folder of a task that holds a run directory for each of its shards."""
SERVED = "served.json"
"""The version of the weights in a folder of served weights, the names of their files, the checksum of each tensor."""
_RANK_LOG = re.compile(r"rank-(\d+)\.out")


@dataclass(frozen=True)
class AttemptPaths:
    """One attempt: its job script, its DeepSpeed configuration, the logs of its ranks."""

    root: Path

    @property
    def number(self) -> int:
        return int(self.root.name)

    @property
    def script(self) -> Path:
        return self.root / "script.sh"

    @property
    def deepspeed(self) -> Path:
        return self.root / "deepspeed.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def stacks(self) -> Path:
        return self.root / "stacks"

    @property
    def not_finite(self) -> Path:
        """The batches whose loss or gradient was not finite, a file for each rank."""
        return self.root / "not-finite"

    @property
    def heartbeats(self) -> Path:
        """`rank-<r>.json` for each rank: its phase, its step, and when it last moved."""
        return self.root / "heartbeats"

    @property
    def all_heartbeats(self) -> list[Path]:
        return sorted(self.heartbeats.glob("rank-*.json"))

    def heartbeat(self, rank: int) -> Path:
        return self.heartbeats / f"rank-{rank}.json"

    def stack(self, rank: int) -> Path:
        """The stacks of a rank's threads when it hung."""
        return self.stacks / f"rank-{rank}.txt"

    def not_finite_batches(self, rank: int) -> Path:
        return self.not_finite / f"rank-{rank}.pt"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.out"

    def server_log(self, number: int) -> Path:
        """The output of a server of an external engine; no evidence of why ranks end, since it is started again."""
        return self.logs / f"server-{number}.txt"

    @property
    def rank_logs(self) -> list[Path]:
        return sorted(self.logs.glob("rank-*.out"))

    @property
    def starter_log(self) -> Path:
        """The output of the program that starts the ranks: a node failed, a task was killed."""
        return self.logs / "srun.out"

    @property
    def all_logs(self) -> list[Path]:
        """The logs of the ranks, and that of the program that starts them."""
        return sorted(self.logs.glob("*.out"))

    def rank_error(self, rank: int) -> Path:
        """The record that a failing rank leaves: type, message, step, sample."""
        return self.logs / f"rank-{rank}.error.json"

    @property
    def rank_errors(self) -> list[Path]:
        return sorted(self.logs.glob("rank-*.error.json"))


def rank_of_log(log: Path) -> int | None:
    """The rank that a log belongs to; None for the log of the program that starts the ranks."""
    match = _RANK_LOG.fullmatch(log.name)
    return int(match.group(1)) if match else None


def curves_in(tensorboard: Path) -> list[Path]:
    """TensorBoard's event files, one for each attempt that has begun to write."""
    return sorted(tensorboard.glob("events.out.tfevents.*"))


@dataclass(frozen=True)
class CheckpointPaths:
    """What is inside a checkpoint folder."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "MANIFEST.json"

    @property
    def state(self) -> Path:
        """The train state: the step, the state of the data source, the best metric."""
        return self.root / "state.json"

    def random(self, rank: int) -> Path:
        """The random states of a rank."""
        return self.root / f"rank-{rank}.pt"

    def engine(self, name: str) -> Path:
        """The folder that an engine is loaded from. A checkpoint of version 0.1 has one engine, in its root."""
        folder = self.new_engine(name)
        return folder if folder.is_dir() else self.root

    def new_engine(self, name: str) -> Path:
        """The folder that an engine is saved in."""
        return self.root / name


def checkpoint_in(checkpoints: Path, step: int) -> Path:
    """The folder of a checkpoint."""
    return checkpoints / f"step-{step}"


def run_of_checkpoint(file: Path) -> RunPaths:
    """The run that a file of a checkpoint belongs to; the checkpoint may be one that is being written."""
    inside = next((folder for folder in file.parents if folder.name == _CHECKPOINTS), file.parent)
    return RunPaths(inside.parent)


def of_checkpoint(folder: Path) -> tuple[RunPaths, int] | None:
    """The run and the step of a checkpoint's folder; None if it is no checkpoint of a run."""
    match, run = _CHECKPOINT.fullmatch(folder.name), RunPaths(folder.parent.parent)
    return (run, int(match.group(1))) if match and run.resolved.is_file() else None


def staging_in(checkpoints: Path, step: int) -> Path:
    """Where a checkpoint is written before it exists."""
    return checkpoints / f".step-{step}.writing"


def all_staging_in(checkpoints: Path) -> list[Path]:
    """Unfinished checkpoints: one may be in work, a killed process has left the others."""
    return sorted(checkpoints.glob(".step-*.writing"))


@dataclass(frozen=True)
class RunPaths:
    """A run directory."""

    root: Path

    @property
    def name(self) -> str:
        """That of its folder; `predict-1128-6b53/3` for a shard of a task."""
        if self.root.parent.name == SHARDS and self.definition_above.is_file():
            return f"{self.root.parent.parent.name}/{self.root.name}"
        return self.root.name

    @property
    def definition(self) -> Path:
        """How the rows of a task are split into shards."""
        return self.root / "shards.json"

    @property
    def definition_above(self) -> Path:
        return RunPaths(self.root.parent.parent).definition

    @property
    def pipeline(self) -> Path:
        """What a pipeline or a sweep is made of: its stages, each a run directory of its own."""
        return self.root / "pipeline.json"

    @property
    def stage(self) -> Path:
        """Of a run that is a stage: its pipeline, and the stages that it needs."""
        return self.root / "stage.json"

    @property
    def lock(self) -> Path:
        """Of a pipeline: whoever lets stages begin locks it, so that each begins once."""
        return self.root / "lock"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        return self.root / "recipe.resolved.yaml"

    def resolved_before(self, attempt: int) -> Path:
        """The recipe of the attempts before this one, kept because this one has changed it."""
        return self.root / f"recipe.resolved.{attempt - 1}.yaml"

    @property
    def code(self) -> Path:
        """The packages as they were when the run was submitted."""
        return self.root / "code"

    @property
    def plugin_files(self) -> Path:
        """The files of the user's own code that the recipe names, as they were when the run was submitted."""
        return self.code / "plugins"

    def plugin_file(self, written: str) -> Path:
        """The copy of a file of the user's own, by its name in the recipe; files of several folders may share one."""
        digest = hashlib.sha256(written.encode()).hexdigest()[:8]
        return self.plugin_files / f"{Path(written).stem}-{digest}.py"

    @property
    def launcher(self) -> Path:
        """The file of the snapshot that holds the version of its launcher."""
        return self.code / "mmlaunch" / "__init__.py"

    @property
    def environment(self) -> Path:
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def owners(self) -> Path:
        """One file for each submission of the run: who made it, and which job trains."""
        return self.root / "owners"

    @property
    def users(self) -> Path:
        """One file for each run that starts from a checkpoint of this one."""
        return self.root / "users"

    @property
    def pins(self) -> Path:
        """What the first attempt began with: the weights, the tokenizer, the reference."""
        return self.root / "pins.json"

    @property
    def profile(self) -> Path:
        """The cluster profile as it was at the newest submission."""
        return self.root / "cluster.json"

    @property
    def job(self) -> Path:
        """submitit's own folder: the pickled callable."""
        return self.root / "job"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts"

    @property
    def checkpoints(self) -> Path:
        return self.root / _CHECKPOINTS

    @property
    def batch_log(self) -> Path:
        """The output of a job script, where the scheduler does not name the file itself."""
        return self.job / "batch.out"

    @property
    def batch_logs(self) -> list[Path]:
        """The output of the job scripts of all jobs of this run."""
        return sorted(self.job.glob("batch*.out"))

    @property
    def attempt_numbers(self) -> list[int]:
        return sorted(int(folder.name) for folder in self.attempts.glob("[0-9]*"))

    @property
    def curves(self) -> list[Path]:
        return curves_in(self.tensorboard)

    @property
    def reference(self) -> Path:
        """The reference's log-probabilities, in a folder for each set of weights."""
        return self.root / "reference"

    @property
    def rollouts(self) -> Path:
        """Generated answers and what is learnt from them, in a folder for each rollout that is still needed."""
        return self.root / "rollouts"

    def rollout(self, step: int) -> Path:
        """The rollout that the policy of a step has made."""
        return self.rollouts / str(step)

    @property
    def served(self) -> Path:
        """The policy's weights as the servers of an external engine read them."""
        return self.rollouts / "weights"

    @property
    def servers(self) -> Path:
        """One file for each server of an external engine: where it is, and how often it was started."""
        return self.root / "servers"

    def server(self, number: int) -> Path:
        return self.servers / f"{number}.json"

    def servers_over(self, attempt: int) -> Path:
        """It is there once the servers of an attempt are not needed any more."""
        return self.servers / f"over-{attempt}"

    @property
    def samples(self) -> Path:
        """The images of the samples that the newest evaluation has generated answers to."""
        return self.root / "samples"

    @property
    def evaluation(self) -> Path:
        """What the records of a task come to."""
        return self.root / "evaluation.json"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    @property
    def profiles(self) -> Path:
        """Traces of the profiler, a folder for each window of steps."""
        return self.root / "profiles"

    def trace(self, first: int, last: int, rank: int) -> Path:
        """The trace of a rank over these steps; the table of its operations stands beside it."""
        return self.profiles / f"steps-{first}-{last}" / f"rank-{rank}.json.gz"

    @property
    def all_traces(self) -> list[Path]:
        return sorted(self.profiles.glob("steps-*/rank-*.json.gz"))

    def profile_failure(self, rank: int) -> Path:
        """Why a rank could not write the newest trace that was requested."""
        return self.profiles / f"rank-{rank}.failed"

    @property
    def profile_request(self) -> Path:
        """What a command requests of the ranks of a live run."""
        return self.profiles / "request.json"

    @property
    def notified(self) -> Path:
        """Marks of the notifications that were sent."""
        return self.root / "notified"

    def tracker(self, name: str) -> Path:
        """What an experiment tracker keeps of the run, and which steps it has."""
        return self.root / "trackers" / name

    @property
    def skipped(self) -> Path:
        """The rows of the data that are left out, with their reasons."""
        return self.root / "data" / "skipped.jsonl"

    def export(self, step: int) -> Path:
        """The model of a finished run as a Hugging Face directory, which was sent to the hub."""
        return self.root / "exports" / f"step-{step}"

    @property
    def frozen(self) -> Path:
        """The weights that no step changes."""
        return self.root / "frozen"

    def frozen_weights(self, name: str) -> Path:
        """The folder of those of one model; it is named by a digest of their content."""
        return self.frozen / name

    def survey(self, key: str) -> Path:
        """What is known of every row of some data, as one model reads it."""
        return self.root / "data" / f"survey-{key}.safetensors"

    def attempt(self, number: int) -> AttemptPaths:
        return AttemptPaths(self.attempts / str(number))

    def checkpoint(self, step: int) -> Path:
        return checkpoint_in(self.checkpoints, step)
