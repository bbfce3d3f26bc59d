"""The contract with a server: what it answers is compared with what was asked, and each of its faults has a name."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.jobs.rollout.stand_in import StandIn
from tests.jobs.small import mixed

from mmjobs.data.batch import collate
from mmjobs.data.chat import Tokens
from mmjobs.data.encode import Processor
from mmjobs.data.loader import Examples
from mmjobs.model.build import build
from mmjobs.model.generate import Vocabulary
from mmjobs.model.sampling import Draws
from mmjobs.model.served import Served, introduce
from mmjobs.model.vision_memory import VisionMemory
from mmjobs.objectives.forward import answer_log_probs
from mmjobs.rollout.external import client
from mmjobs.rollout.external import servers as module
from mmjobs.rollout.external.client import Address, EngineFailed, ServerLost
from mmjobs.rollout.external.external import checked, question, settings_of
from mmjobs.rollout.external.messages import Answer, Answered, Answers, Questions
from mmjobs.rollout.external.serve import serve
from mmjobs.rollout.external.servers import Servers
from mmjobs.rollout.rows import Prompts
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.engine import Engine
from mmlaunch.recipe.sampling import Sampling
from mmlaunch.run.files import publish
from mmlaunch.run.paths import RunPaths

SAMPLING = Sampling(max_new_tokens=6, min_new_tokens=2, answers=3)


class Machine:
    """A trainer's policy and prompts, and a real server in a thread of this process."""

    def __init__(self, recipe: Recipe, paths: RunPaths) -> None:
        torch.manual_seed(4)
        self.paths, self.recipe, self.built = paths, recipe, build(recipe.model)
        self.built.network.eval()
        processor = Processor(self.built.chat, self.built.pixels, 128, requirements=recipe.objective.requirements)
        mixture = mixed(*recipe.data.train, processor=processor)
        self.prompts = Prompts(Examples(mixture, processor, packed=True), VisionMemory())
        self.vocabulary = Vocabulary(self.built.network, self.built.chat, SAMPLING)
        paths.rollouts.mkdir(exist_ok=True)
        introduce(self.built, "fp32", paths.served)
        self.served = Served(self.built.network, "fp32", paths.served, writes=True)
        self.checksums = self.served.write("1", lambda: None)
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.starts = 0

    def start(self, **options: Any) -> None:
        """Start a server, and write down where it is."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.starts += 1
        run = partial(serve, lambda: StandIn(self.paths.served, options), "127.0.0.1", port, self._over.is_set)
        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()
        self.address = Address(1, "127.0.0.1", port, "", self.starts)
        self.write(self.address)

    def write(self, address: Address) -> None:
        self.paths.servers.mkdir(exist_ok=True)
        publish(self.paths.server(0), json.dumps(asdict(address)))

    def servers(self, **settings: Any) -> Servers:
        """The trainer's side, with the first version of the weights."""
        servers = Servers(self.paths, 1, Engine(kind="vllm", **settings), 1)
        servers.expect("1", self.checksums)
        return servers

    def request(self, indices: Sequence[int], version: str = "1") -> Questions:
        draws = [[Draws(0, index, number) for number in range(3)] for index in indices]
        asked = [question(self.prompts, index, of) for index, of in zip(indices, draws, strict=True)]
        return Questions(version, settings_of(SAMPLING, self.vocabulary), asked)

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(1)


@pytest.fixture
def machine(tiny: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(client, "GRACE", 0.2)
    monkeypatch.setattr(client, "LOOK", 0.1)
    monkeypatch.setattr(module, "GRACE", 2)
    objective = {"method": "rloo", "rewards": "exact", "rollouts": 8, "sampling": {"answers": 4, "max_new_tokens": 6}}
    made = Machine(tiny(objective=objective, data__train__limit=6), RunPaths(tmp_path))
    yield made
    made.close()


def test_answers_are_of_the_prompts_and_the_weights_that_are_learnt_from(machine: Machine) -> None:
    machine.start()
    servers = machine.servers()
    servers.load_all()
    request = machine.request([0, 3])
    assert all(one.ids.count(machine.built.chat.image_id or -1) == 1 for one in request.prompts), "one placeholder"
    answers = servers.answer(0, request)
    made = checked(machine.prompts, [0, 3], request, answers)
    assert len(made) == 6 and all(2 <= len(one.ids) <= 6 for one in made)
    assert servers.answer(0, machine.request([3, 0])).prompts[::-1] == answers.prompts, "seeds belong to the answers"
    encoded = [machine.prompts[index] for index in (0, 3)]
    rows = [replace(one, answers=tuple(Tokens(a.ids, [True] * len(a.ids)) for a in made[place * 3 : place * 3 + 3]),
                    scores=(None,) * 3) for place, one in enumerate(encoded)]  # fmt: skip
    batch = collate(rows, machine.built.pixels, 0, packed=True)
    with torch.no_grad():
        ours = answer_log_probs(machine.built.network, batch).values
    theirs = torch.tensor([value for one in made for value in one.log_probs])
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_new_weights_move_the_answers_of_the_same_image(machine: Machine) -> None:
    """vLLM #44910: caches that survive a sync answer with features of the old tower."""
    machine.start()
    servers = machine.servers()
    servers.load_all()
    before = servers.answer(0, machine.request([0]))
    with torch.no_grad():
        for name, parameter in machine.built.network.named_parameters():
            if "vision" in name:
                parameter.mul_(1.5)
    servers.expect("2", machine.served.write("2", lambda: None))
    after = servers.answer(0, machine.request([0], "2"))  # it has version 1, says so, and is told to load
    assert after.version == "2" and after.prompts[0].prompt == before.prompts[0].prompt
    assert after.prompts[0].answers[0].log_probs[0] != before.prompts[0].answers[0].log_probs[0]


def test_weights_that_a_server_has_not_taken_are_seen(machine: Machine) -> None:
    machine.start(fault="stale")
    servers = machine.servers()
    servers.load_all()
    with torch.no_grad():
        machine.built.network.get_parameter("lm_head.weight").add_(1.0)
    servers.expect("2", machine.served.write("2", lambda: None))
    with pytest.raises(
        EngineFailed, match=r"server 0 has other weights than the trainer: 1 of 55 tensors differ, e.g. .*lm_head"
    ):
        servers.load_all()


def test_a_prompt_that_the_engine_reads_otherwise_names_its_sample(machine: Machine) -> None:
    machine.start(fault="expands")
    servers = machine.servers()
    servers.load_all()
    request = machine.request([2])
    ours = len(machine.prompts[2].prompt)
    words = (
        rf"shapes:2: the engine has read its prompt as {ours + 1} tokens \(4 of images\), the trainer as {ours} tokens"
    )
    with pytest.raises(BadInput, match=words):
        checked(machine.prompts, [2], request, servers.answer(0, request))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": []}, "0 tokens with"),
        ({"log_probs": [-1.0]}, "with 1 log-probabilities"),
        ({"log_probs": [0.5] * 6}, "no log-probability"),
        ({"log_probs": [float("nan")] * 6}, "no log-probability"),
        ({"ids": [259] * 6}, "the token 259, which is forbidden"),
    ],
)
def test_answers_that_cannot_be_learnt_from_are_refused(machine: Machine, change: dict[str, Any], words: str) -> None:
    request = machine.request([1])
    good = Answer([70] * 6, [-1.0] * 6)
    prompt = machine.prompts[1].prompt.ids
    answers = Answers("1", [Answered(prompt, [good, good, replace(good, **change)])])
    with pytest.raises(EngineFailed, match=rf"shapes:1: .*{words}"):
        checked(machine.prompts, [1], request, answers)
    with pytest.raises(EngineFailed, match=r"2 answers instead of 3"):
        checked(machine.prompts, [1], request, Answers("1", [Answered(prompt, [good, good])]))
    with pytest.raises(EngineFailed, match=r"version 0, not 1 by 1"):
        checked(machine.prompts, [1], request, Answers("0", [Answered(prompt, [good] * 3)]))


def test_another_release_is_refused_with_the_range(machine: Machine) -> None:
    machine.start(name="vllm", release="0.11.2")
    with pytest.raises(BadInput, match=r"is vLLM 0.11.2, .* >=0.22,<0.34; pip install 'mmlaunch\[vllm\]'"):
        machine.servers().load_all()


def test_a_server_that_hangs_is_named_in_time(machine: Machine) -> None:
    machine.start(fault="hangs")
    servers = machine.servers(timeout=1)
    servers.load_all()
    with pytest.raises(ServerLost, match=r"the engine's server 0 hangs: no progress in 1 s"):
        servers.answer(0, machine.request(range(5)))


def test_a_server_that_died_is_asked_again_once_it_was_started_again(machine: Machine) -> None:
    machine.start()
    servers = machine.servers()
    servers.load_all()
    expected = servers.answer(0, machine.request([4]))
    machine.write(replace(machine.address, port=1))  # nobody listens there: that process is gone
    threading.Timer(0.5, machine.start).start()
    assert servers.answer(0, machine.request([4])) == expected
    machine.write(replace(machine.address, starts=9, port=1))
    with pytest.raises(ServerLost, match=r"the engine's server 0 died: .*refused; see attempts/1/logs/server-0.txt"):
        servers.answer(0, machine.request([4]))
    machine.write(replace(machine.address, failed="it has ended 3 times"))
    with pytest.raises(EngineFailed, match=r"does not start: it has ended 3 times; see attempts/1/logs/server-0.txt"):
        servers.load_all()


def test_nobody_else_is_answered(machine: Machine) -> None:
    machine.start()
    servers = machine.servers()
    servers.load_all()
    machine.write(replace(machine.address, key="guessed"))
    with pytest.raises(EngineFailed, match=r"this key is not the one of this server"):
        servers.answer(0, machine.request([0]))
