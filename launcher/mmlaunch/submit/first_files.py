"""The first recipe and the cluster profile of a new site, as text: what `mmlaunch init` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmlaunch.load.cluster import config_folder
from mmlaunch.load.imports.recipe_text import flow, scalar
from mmlaunch.recipe.scalars import format_duration
from mmlaunch.schedulers.base import Partition

USUAL_BATCH = 128
USUAL_TIME = 86400
USUAL_FORMAT = "trl"
"""Of data that are not there yet."""
USUAL_RANKS = 8
"""Of a node without GPUs."""
ANSWERS = 8
"""Answers to a prompt in GRPO."""


@dataclass(frozen=True)
class Kind:
    """One method that a first recipe may have."""

    objective: str
    """Its lines of YAML."""
    lr: str
    lora_lr: str
    rows: str
    """What the rows of its data have to hold."""
    best: str = "eval/loss"
    """The metric by which its best checkpoint is known."""


KINDS: dict[str, Kind] = {
    "sft": Kind("objective: sft", "1e-5", "1e-4", "a question and an answer", "eval/loss"),
    "dpo": Kind(
        "objective: dpo                            # or {{terms: {{sigmoid: 0.8, bco: 0.2, sft: 1.0}}, beta: 0.1}}",
        "1e-6", "5e-6", "a question, a better answer and a worse one", "eval/accuracy",
    ),
    "reward": Kind(
        "objective: {{method: reward, centre: 0.01}}", "1e-6", "1e-5",
        "a question, a better answer and a worse one", "eval/accuracy",
    ),
    "grpo": Kind(
        "objective:\n  method: grpo\n"
        "  rewards: exact                          # or math, choice, ..., a reward run, a function of yours\n"
        "  sampling: {{answers: {answers}, max_new_tokens: 512}}\n  rollouts: {batch}",
        "1e-6", "1e-5", "a question and the right answer", "eval/right",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """What the user wants."""

    name: str
    method: str
    model: str
    train: str
    """lora or full"""
    data: str
    nodes: int
    gpus: int
    """Of a node."""
    time: int
    """Seconds."""
    executor: str
    partition: str = ""
    account: str = ""
    gpu_memory: str = ""


def batch_of(answers: Answers) -> int:
    """A global batch near the usual one that every rank has the same share of, in whole groups of answers."""
    step = answers.nodes * max(1, answers.gpus) * (ANSWERS if answers.method == "grpo" else 1)
    return max(1, round(USUAL_BATCH / step)) * step


def recipe_text(answers: Answers) -> str:
    """The recipe, with a comment where a reader has a choice."""
    kind, batch, lora = KINDS[answers.method], batch_of(answers), answers.train == "lora"
    ways = {"vision": "frozen", "projector": "frozen" if lora else "full", "language": "lora" if lora else "full"}
    stage = 3 if answers.gpus and not lora else 0
    source = {"path": answers.data, "format": "auto" if Path(answers.data).exists() else USUAL_FORMAT}
    ranks = "" if answers.gpus else ", tasks_per_node: 1"
    size = f"nodes: {answers.nodes}, gpus_per_node: {answers.gpus}{ranks}, time: {format_duration(answers.time)}"
    return _text(
        (
            "# A first recipe, by mmlaunch init. mmlaunch schema lists every key that it may have.",
            "",
        ),
        (f"name: {scalar(answers.name)}", ""),
        ("model:", ""),
        (f"  pretrained: {scalar(answers.model)}", "a Hugging Face name or a folder"),
        (f"  train: {flow(ways)}", "frozen, full or lora, for each part"),
        *([("  lora: {rank: 64, alpha: 128}", "")] if lora else []),
        ("data:", f"rows with {kind.rows}"),
        (f"  train: {flow(source)}", "auto recognises it; all: mmlaunch data --formats"),
        ("  # eval: {path: data/test.json, limit: 500}", ""),
        ("  on_bad: error", "or skip: what is left out is listed in the run directory"),
        ("  max_tokens: 2048", "the longest example, image tokens included"),
        *((line, "") for line in kind.objective.format(answers=ANSWERS, batch=batch).splitlines()),
        (f"optim: {{lr: {kind.lora_lr if lora else kind.lr}, schedule: cosine, warmup: 3%}}", ""),
        (f"batch: {{global: {batch}}}", "examples of one step, over all ranks"),
        ("epochs: 1", ""),
        ("precision: bf16", ""),
        (f"deepspeed: {{stage: {stage}}}", "ZeRO; 3 divides the weights over the GPUs"),
        ("checkpoint: {every: 30m, keep: 3}", f"with data.eval, also best: {kind.best}"),
        (f"resources: {{{size}}}", ""),
        ("# restarts: {crash: 2, node: 10, hang: 3}", "by cause; time limits and preemption cost nothing"),
        ("# env: [WANDB_API_KEY]", "names; values come from your shell and are never written down"),
    )


def profile_text(answers: Answers, site: Partition | None) -> str:
    """The cluster profile, of jobs that are sent to this partition."""
    queued = bool(site and site.name)
    return _text(
        ("# The profile of this site, by mmlaunch init. Name it with --cluster, or copy it to", ""),
        (f"# {config_folder()}/clusters/default.yaml, where it is used without being named.", ""),
        ("description: this site", ""),
        (f"executor: {answers.executor}", ""),
        *([(f"partition: {scalar(answers.partition)}", "or several: [a, b]")] if answers.partition else []),
        *([(f"account: {scalar(answers.account)}", "")] if answers.account else []),
        *(_of_node(answers, site) if site and queued else []),
        (
            f"gpu_memory: {answers.gpu_memory}" if answers.gpu_memory else "# gpu_memory: 80G",
            "of one GPU, as it is sold: submit and estimate say whether a run fits",
        ),
        (f"cpus_per_rank: {_cpus(site)}", ""),
        *(FOR_A_QUEUE if queued else ()),
    )


FOR_A_QUEUE = (
    ("# modules: [cuda/12.8]", "loaded before the ranks start"),
    ("# nccl: {SOCKET_IFNAME: ib0}", "NCCL's settings, without their prefix"),
    ("# scratch: /local/$USER", "a folder of the node for temporary files"),
    ("signal: {name: USR2, lead: 2m}", "how long before the time limit the ranks are asked to save"),
)


def _of_node(answers: Answers, site: Partition) -> list[tuple[str, str]]:
    option = "gpus-per-node" if answers.gpus or site.gpus else "none"
    lines = [(f"gpus: {option}", "or gres, on older sites; none: it has no GPUs")]
    lines += (
        [(f"gpus_in_node: {site.gpus}", "a job that asks for all of them also gets all memory")] if site.gpus else []
    )
    return lines + ([(f"max_time: {format_duration(site.max_time)}", "")] if site.max_time else [])


def _cpus(site: Partition | None) -> int:
    """The CPUs of a rank: its share of a node, up to 16; on a machine without GPUs and without a queue 1."""
    if site is None or not (site.gpus or site.name):
        return 1
    return max(1, min(16, site.cpus // max(1, site.gpus or USUAL_RANKS)))


def _text(*lines: tuple[str, str]) -> str:
    """Lines, with their comments behind them."""
    return "".join(f"{f'{line:<40}  # {comment}' if comment else line}\n" for line, comment in lines)
