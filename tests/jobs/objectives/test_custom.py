"""Objectives of the user's own: trained like those of mmlaunch, kept over restarts, named where they are wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmjobs.objectives import objective_of
from mmjobs.objectives.objective import NeedsGlobalBatch, Stateful, Summarising
from mmjobs.tasks.export import export
from mmlaunch.errors import BadInput
from mmlaunch.recipe import Recipe
from mmlaunch.recipe.custom import Custom
from mmlaunch.restart import policy
from mmlaunch.run import plugins

Jobs = Callable[[str], Any]
Recipes = Callable[..., Recipe]
FILE = "my_objective.py"

LIKE_SFT = '''
from mmjobs.objectives.forward import answer_token_log_probs, by_example
from mmjobs.objectives.objective import ObjectiveOutput


class Same:
    """The loss of sft."""

    over = ("tokens",)
    metrics = ("confidence",)

    def __init__(self, settings, reference):
        self.options, self.reference = settings.options, reference

    def units(self, batch):
        return {"tokens": float(batch.loss_mask.sum())}

    def __call__(self, network, batch):
        log_probs = answer_token_log_probs(network, batch)
        return self.output(-log_probs, batch)

    def output(self, losses, batch):
        return ObjectiveOutput(
            losses={"tokens": losses.sum()},
            example_losses=by_example(losses.detach(), batch),
            metrics={"confidence": ((-losses).exp().sum(), losses.new_tensor(len(losses)))},
        )
'''
OTHERS = '''

class Baseline(Same):
    """Tokens count by how much worse they are than the mean of all earlier steps."""

    def __init__(self, settings, reference):
        super().__init__(settings, reference)
        self.seen = [0.0, 0.0]

    def __call__(self, network, batch):
        log_probs = answer_token_log_probs(network, batch)
        mean = self.seen[0] / self.seen[1] if self.seen[1] else 0.0
        return self.output(-log_probs * (1 + 0.5 * mean), batch)

    def state(self):
        return {"seen": self.seen}

    def restore(self, state):
        self.seen = list(state["seen"])

    def update(self, sums):
        self.seen = [old + new for old, new in zip(self.seen, sums["confidence"])]


class Relative(Same):
    """Each token counts by how likely it is, compared with the mean of the global batch."""

    needs_global_batch = True

    def statistics(self, network, batch):
        return {"log_probs": answer_token_log_probs(network, batch).cpu()}

    def set_global_batch(self, statistics, rank):
        self.mean = torch.cat([one["log_probs"] for of_rank in statistics for one in of_rank]).mean()

    def __call__(self, network, batch):
        log_probs = answer_token_log_probs(network, batch)
        return self.output(-log_probs * torch.exp(log_probs.detach() - self.mean), batch)


class Pairs:
    """The loss of dpo."""

    over = ("examples",)
    metrics = ()

    def __init__(self, settings, reference):
        self.beta, self.reference = settings.options["beta"], reference

    def units(self, batch):
        return {"examples": float(len(batch))}

    def __call__(self, network, batch):
        log_probs = answer_token_log_probs(network, batch)
        ratios = by_answer(log_probs - self.reference(network, batch), batch)
        index = CompletionIndex.of(batch)
        losses = -logsigmoid(self.beta * (ratios[index.chosen] - ratios[index.rejected]))
        return ObjectiveOutput(losses={"examples": losses.sum()}, example_losses=losses.detach(), metrics={})


class Regression:
    """The distance of each answer's number from 1."""

    over = ("answers",)
    metrics = ("value",)

    def __init__(self, settings, reference):
        assert reference is None

    def units(self, batch):
        return {"answers": float(len(batch.answers))}

    def __call__(self, network, batch):
        values = score_of(network, hidden_states(network, batch, batch.answers.last))
        losses = (values - 1) ** 2
        each = losses.detach().new_zeros(len(batch)).index_add(0, batch.answers.example, losses.detach())
        count = values.new_tensor(len(values))
        return ObjectiveOutput({"answers": losses.sum()}, each, {"value": (values.sum(), count)})
'''
IMPORTS = """
import torch
from torch.nn.functional import logsigmoid

from mmjobs.model.heads import score_of
from mmjobs.objectives.forward import by_answer, hidden_states
from mmjobs.objectives.policy_vs_reference import CompletionIndex
"""
TWO = {"resources__tasks_per_node": 2}


def keep(run: Any, text: str = IMPORTS + LIKE_SFT + OTHERS) -> Any:
    """A run that has its copy of the plugin, as `submit` makes it."""
    run.paths.plugin_files.mkdir(parents=True)
    run.paths.plugin_file(FILE).write_text(text)
    return run


def test_the_loss_of_sft_is_that_of_sft_bit_for_bit(job: Jobs, tiny: Recipes) -> None:
    own, sft = keep(job("own")), job("sft")
    objective = {"method": f"{FILE}:Same", "metrics": "confidence"}
    changes = {
        **TWO,
        "checkpoint__best": "eval/confidence",
        "batch": {"global": 8, "tokens_per_gpu": 130},
        "data__max_tokens": 130,
    }
    assert own.run(tiny(objective=objective, **changes), 2) == [0, 0], own.log()
    assert sft.run(tiny(**{**changes, "checkpoint__best": None}), 2) == [0, 0], sft.log()
    assert own.losses() == sft.losses() and len(own.losses()) == 6
    for name, weight in sft.weights(6).items():
        assert torch.equal(own.weights(6)[name], weight), name
    mine, others = (run.events("evaluated")[-1]["metrics"] for run in (own, sft))
    assert mine["eval/loss"] == others["eval/loss"] and 0 < mine["eval/confidence"] < 1
    assert all(0 < event["confidence"] < 1 for event in own.events("step"))


@pytest.mark.parametrize("reference", ["precomputed", "copy", "adapter off"])
def test_the_reference_of_the_recipe_is_the_one_that_dpo_has(job: Jobs, tiny: Recipes, reference: str) -> None:
    lora = {"model__lora": {"rank": 4}, "model__train": {"vision": "frozen", "projector": "frozen", "language": "lora"}}
    changes = {**TWO, **(lora if reference == "adapter off" else {})}
    own, dpo = keep(job("own")), job("dpo")
    objective = {"method": f"{FILE}:Pairs", "options": {"beta": 0.3}, "answers": 2, "reference": reference}
    assert own.run(tiny(objective=objective, **changes), 2) == [0, 0], own.log()
    assert dpo.run(tiny(objective={"method": "dpo", "beta": 0.3, "reference": reference}, **changes), 2) == [0, 0]
    for step, losses in dpo.losses().items():
        assert own.losses()[step] == pytest.approx(losses, abs=1e-6)
    assert len(set(map(tuple, own.losses().values()))) == 6


def test_what_it_remembers_survives_a_kill_bit_for_bit(job: Jobs, tiny: Recipes) -> None:
    recipe = tiny(objective=f"{FILE}:Baseline", steps=24, checkpoint__every="4 steps", **TWO)
    whole, broken = keep(job("whole")), keep(job("broken"))
    assert whole.run(recipe, 2) == [0, 0], whole.log()
    broken.start(recipe, 2)
    broken.when(6, 4)
    broken.kill()
    assert broken.run(recipe, 2) == [0, 0], broken.log()
    assert broken.events("resumed")[0]["step"] >= 4
    expected = whole.losses()
    assert {step: set(values) for step, values in broken.losses().items()} == {k: set(v) for k, v in expected.items()}
    for name, weight in whole.weights(24).items():
        assert torch.equal(broken.weights(24)[name], weight), name
    plain = keep(job("plain"))
    assert plain.run(tiny(objective=f"{FILE}:Same", steps=24, **TWO), 2) == [0, 0]
    assert plain.losses()[24] != expected[24], "the baseline is part of the loss"


def test_a_loss_that_needs_the_global_batch_is_the_same_on_two_ranks(job: Jobs, tiny: Recipes) -> None:
    one, two = keep(job("one")), keep(job("two"))
    changes = {"objective": f"{FILE}:Relative", "optim": {"lr": 3e-3, "eps": 1e-4}, "batch": {"global": 8, "micro": 2}}
    assert one.run(tiny(**changes)) == [0], one.log()
    assert two.run(tiny(**changes, **TWO), 2) == [0, 0], two.log()
    for step, losses in one.losses().items():
        assert two.losses()[step] == pytest.approx(losses, rel=3e-6)


def test_a_scoring_head_is_built_trained_and_exported(job: Jobs, tiny: Recipes, tmp_path: Path) -> None:
    run = keep(job("run"))
    objective = {"method": f"{FILE}:Regression", "answers": 1, "most_answers": "all", "scoring_head": True}
    assert run.run(tiny(objective=objective, steps=20)) == [0], run.log()
    losses = run.losses()
    assert losses[20] < losses[1]
    export(run.paths.root, tmp_path / "out")
    assert (tmp_path / "out" / "reward.json").is_file()
    assert f"{FILE}:Regression" in (tmp_path / "out" / "README.md").read_text()


def test_mistakes_end_the_run_and_name_the_plugin(job: Jobs, tiny: Recipes) -> None:
    run = keep(job("run"), LIKE_SFT.replace("return self.output(-log_probs, batch)", "return self.outputs(-log_probs)"))
    assert run.run(tiny(objective=f"{FILE}:Same")) == [94], run.log()
    record = json.loads(run.paths.attempt(1).rank_error(0).read_text())
    line = LIKE_SFT.splitlines().index("        log_probs = answer_token_log_probs(network, batch)") + 2
    assert record["message"].startswith(f"{FILE}:Same failed in line {line}: AttributeError: 'Same' object has no")
    assert record["type"] == "PluginFailed" and policy.classify(94, run.paths.attempt(1), []).cause == "plugin"
    wrong = keep(job("wrong"), LIKE_SFT.replace("losses.sum()", "losses"))
    assert wrong.run(tiny(objective=f"{FILE}:Same")) == [94]
    message = json.loads(wrong.paths.attempt(1).rank_error(0).read_text())["message"]
    assert re.search(r"losses\['tokens'\] is a tensor of shape \[\d+\]; return the sum over the batch", message)


def test_a_term_that_fails_is_named(job: Jobs, tiny: Recipes) -> None:
    run = keep(
        job("run"), "def softer(pairs, settings):\n    return settings.options['heat'] * pairs.chosen.log_ratio\n"
    )
    assert run.run(tiny(objective={"method": "dpo", "terms": {f"{FILE}:softer": 1.0}})) == [94], run.log()
    record = json.loads(run.paths.attempt(1).rank_error(0).read_text())
    assert (record["type"], record["message"]) == ("PluginFailed", f"{FILE}:softer failed in line 2: KeyError: 'heat'")
    mean = keep(job("mean"), "def softer(pairs, settings):\n    return pairs.chosen.log_ratio.mean()\n")
    assert mean.run(tiny(objective={"method": "dpo", "terms": {f"{FILE}:softer": 1.0}})) == [94], mean.log()
    message = json.loads(mean.paths.attempt(1).rank_error(0).read_text())["message"]
    assert (
        message == f"{FILE}:softer returned a tensor of shape []; return one loss for each pair: a tensor of shape [N]"
    )


def test_a_mean_is_refused(job: Jobs, tiny: Recipes) -> None:
    run = keep(job("run"), LIKE_SFT.replace("losses.sum()", "losses.mean()"))
    assert run.run(tiny(objective=f"{FILE}:Same")) == [94]
    message = json.loads(run.paths.attempt(1).rank_error(0).read_text())["message"]
    assert "the loss is a mean over tokens" in message and "return the sum" in message


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make the objective of a text, in this process."""
    monkeypatch.setenv(plugins.BESIDE, str(tmp_path))
    monkeypatch.delenv(plugins.RUN, raising=False)
    texts: list[str] = []

    def _made(text: str, **settings: Any) -> Any:
        texts.append(text)
        name = f"own_{tmp_path.name}_{len(texts)}.py"
        (tmp_path / name).write_text(text)
        return objective_of(Custom.model_validate({"method": f"{name}:Same", **settings}))

    return _made


def test_only_what_remembers_is_asked_after_every_step(made: Callable[..., Any]) -> None:
    plain = made(LIKE_SFT)
    assert not isinstance(plain, Stateful) and isinstance(plain, Summarising)
    assert isinstance(plain, NeedsGlobalBatch) and not plain.needs_global_batch
    methods = "".join(
        f"    def {name}(self, *_):\n        return {{'a': (1, 2)}}\n" for name in ("state", "restore", "update")
    )
    remembers = made(LIKE_SFT + methods)
    assert isinstance(remembers, Stateful) and remembers.state() == {"a": [1, 2]}
    forgets = made(LIKE_SFT + methods.replace("return {'a': (1, 2)}", "raise AssertionError"))
    forgets.restore({})  # a run that goes on with another objective than it began with
    with pytest.raises(BadInput, match=r"Same failed in line \d+: AssertionError"):
        forgets.restore({"a": 1})


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("class Same:", "class Other:", "defines no Same"),
        ("class Same:", "Same = 3\n\n\nclass Other:", "is no class; write class Same"),
        ("def units(", "def unit(", "has no units; write def units(self, batch)"),
        ("def __call__(", "def forward(", "has no __call__; write def __call__(self, network, batch)"),
        ('over = ("tokens",)', "", "over is None, and no tuple of names"),
        ('over = ("tokens",)', 'over = "tokens"', "over is 'tokens', and no tuple of names; write over = ("),
        ('over = ("tokens",)', "over = ()", "over is empty"),
        ('metrics = ("confidence",)', "", "metrics is None, and no tuple of names"),
        ("settings, reference):", "settings):", "TypeError: "),
        ("settings.options,", "settings.options['gamma'],", "failed in line 13: KeyError: 'gamma'"),
        ("def units(", "def state(self):\n        return {}\n\n    def units(", "has state, but no restore"),
        ("def units(", "def state(self):\n        return {self}\n\n    restore = update = state\n\n    def units(", ""),
    ],
)  # fmt: skip
def test_what_is_no_objective_is_told_at_the_start(
    made: Callable[..., Any], before: str, after: str, message: str
) -> None:
    assert before in LIKE_SFT
    if not message:
        with pytest.raises(BadInput, match="state is a set; return a dict of what JSON can hold"):
            made(LIKE_SFT.replace(before, after)).state()
        return
    with pytest.raises(BadInput, match=re.escape(message)):
        made(LIKE_SFT.replace(before, after))


def test_a_metric_that_nothing_measures_is_told_at_the_start(made: Callable[..., Any]) -> None:
    with pytest.raises(BadInput, match=r"objective.metrics lists certainty, and .*:Same measures confidence"):
        made(LIKE_SFT, metrics=["certainty"])
    summary = "    def summary(self, means):\n        return {**means, 'certainty': 1.0}\n"
    assert made(LIKE_SFT + summary, metrics=["certainty"]).summary({"loss": 1.0})["certainty"] == 1.0


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("return ObjectiveOutput(", "return dict(", "__call__ is a mapping of losses, example_losses, metrics; "),
        ('losses={"tokens"', 'losses={"words"', "losses is a mapping of words; return one sum for each of tokens"),
        ('metrics={"confidence"', 'metrics={"certainty"', "return confidence, as the class says"),
        ("losses.sum()}", "losses.sum().detach()}", "it has no gradient: do not detach it"),
        ("by_example(losses.detach(), batch)", "losses", "example_losses is a tensor of shape [3]; return one for"),
        ("losses.new_tensor(len(losses)))}", "len(losses))}", "metrics['confidence'] is a tuple; return a sum and its"),
    ],
)  # fmt: skip
def test_wrong_results_are_named(made: Callable[..., Any], before: str, after: str, message: str) -> None:
    assert before in LIKE_SFT
    text = LIKE_SFT.replace(before, after).replace(
        "answer_token_log_probs(network, batch)\n", "network.log_probs\n"
    ).replace("by_example(losses.detach(), batch)", "losses.new_zeros(len(batch))")  # fmt: skip
    network: Any = torch.nn.Module()
    network.log_probs = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    with pytest.raises(BadInput, match=re.escape(message)):
        made(text)(network, range(2))


def test_an_error_of_torch_keeps_its_type_and_names_the_plugin(made: Callable[..., Any]) -> None:
    """The restart policy knows errors of devices and of peers by their types and their words."""
    text = LIKE_SFT.replace("answer_token_log_probs(network, batch)\n", "network.weight + network.bias\n")
    with pytest.raises(RuntimeError, match=r"size of tensor a .* \(own_.*:Same in line \d+\)"):
        made(text)(torch.nn.Conv1d(3, 4, 5), range(2))
