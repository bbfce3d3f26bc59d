"""`engine` of reinforcement learning: servers that generate the answers, instead of the trainer itself."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from mmlaunch.recipe.resources import Resources
from mmlaunch.recipe.scalars import Duration, FreeForm, Line
from mmlaunch.recipe.section import Mistake, Section, mistake, rule

VLLM = ((0, 22), (0, 34))
"""The first release of vLLM that is used, and the first that is not; the extra `vllm` in setup.cfg says the same."""
OURS = ("model", "tensor_parallel_size", "seed", "logprobs_mode", "worker_extension_cls", "dtype", "load_format")
"""Arguments of the engine that a run decides itself."""


class Correction(Section):
    """How a token counts whose probability differs between the engine and the trainer."""

    SHORT: ClassVar[str] = "kind"

    kind: Literal["token_truncate", "none"] = "token_truncate"
    """token_truncate: the loss of each token is weighted by min(exp(o - b), limit), with the log-probabilities o of the
    trainer and b of the engine; none: it is only measured."""
    limit: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 2.0
    """The largest weight."""


def _correction(value: Any) -> Any:
    return Correction() if value is None else value


class Engine(Section):
    """Servers that generate the answers."""

    SHORT: ClassVar[str] = "kind"
    OTHER_NAMES: ClassVar[dict[str, str]] = {
        "name": "kind", "backend": "kind", "num_nodes": "nodes", "tensor_parallel_size": "gpus_per_server",
        "tp": "gpus_per_server", "args": "options", "arguments": "options", "tis": "correction",
        "importance_sampling": "correction",
    }  # fmt: skip

    kind: Literal["vllm"]
    """The engine."""
    nodes: Annotated[int, Field(ge=0)] = 1
    """How many of resources.nodes serve, the last ones; the others train. 0: one server beside the ranks."""
    gpus_per_server: Annotated[int, Field(ge=1)] | None = None
    """GPUs that share one copy of the model; left out: all of a node."""
    correction: Annotated[Correction, BeforeValidator(_correction)] = Field(default_factory=Correction)
    """How a token counts whose probability differs between the engine and the trainer."""
    options: Annotated[FreeForm, Field(examples=[{"gpu_memory_utilization": 0.9}])] = {}
    """More arguments of the engine, under its own names."""
    timeout: Duration = 45
    """A server that has work and makes no progress for so long hangs: it is ended and started again."""
    start: Duration = 1800
    """How long a server may take to read the model and begin."""
    command: Annotated[list[Line], Field(examples=[["python", "my_server.py"]])] = []
    """The program of a server, and its first arguments; left out: the server for vLLM that comes with mmlaunch."""

    @rule
    def _own_arguments_stay(self) -> Iterator[Mistake]:
        for name in self.options:
            if name.replace("-", "_") in OURS:
                what = f"the run itself decides {name.replace('-', '_')}"
                right = "write gpus_per_server" if "tensor" in name else "remove it"
                yield ("options", name), self.options[name], mistake(what, right)

    def misfits(self, resources: Resources) -> Iterator[Mistake]:
        """What these nodes cannot do."""
        gpus, each = resources.gpus_per_node, self.gpus_per_server
        if self.nodes >= resources.nodes:
            what = f"{self.nodes} of {resources.nodes} nodes serve, and none is left for training"
            yield ("nodes",), self.nodes, mistake(what, f"write fewer, or resources.nodes: {self.nodes + 1}")
        elif not self.command and not gpus:
            yield (), None, mistake("vLLM needs GPUs, and resources.gpus_per_node is 0", "remove engine")
        elif not self.command and not self.nodes:
            what = "the ranks use all GPUs of their nodes, and no node is left for a server"
            yield ("nodes",), 0, mistake(what, "write 1 or more")
        elif each is not None and gpus and (each > gpus or gpus % each):
            fitting = ", ".join(str(number) for number in range(1, gpus + 1) if gpus % number == 0)
            what = f"{gpus} GPUs of a node do not divide into servers of {each}"
            yield ("gpus_per_server",), each, mistake(what, f"{fitting} would")

    def describe(self, gpus_per_node: int) -> str:
        """`vllm: 4 servers of 2 GPUs on 1 node`."""
        count, each = self.servers(gpus_per_node), self.gpus_per_server or gpus_per_node
        servers = f"{count} server{'s' if count > 1 else ''}{f' of {each} GPUs' if each else ''}"
        where = f"on {self.nodes} node{'s' if self.nodes > 1 else ''}" if self.nodes else "beside the ranks"
        return f"{self.kind}{f' (by {self.command[0]})' if self.command else ''}: {servers} {where}"

    def servers(self, gpus_per_node: int) -> int:
        """The number of all servers."""
        return max(1, self.nodes * self.servers_per_node(gpus_per_node))

    def servers_per_node(self, gpus_per_node: int) -> int:
        """On nodes without GPUs there is one."""
        return max(1, gpus_per_node // (self.gpus_per_server or gpus_per_node or 1))
