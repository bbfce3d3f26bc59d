"""Chat: the tokens of a conversation are those of its whole text; the answers are learnt and nothing else is."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.conftest import examples

from mmjobs.data.chat import Chat, TemplateMismatch, own_template
from mmjobs.data.example import IMAGE, Turn
from mmjobs.model.tokens import complete
from mmjobs.model.toys.tokenizers import CHATML, VICUNA, llama2_tokenizer, llama3_tokenizer


def chat(tokenizer: Any, template: str) -> Chat:
    complete(tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer, "<image>")


QWEN = llama3_tokenizer("<|im_start|>", "<|im_end|>")
QWEN.eos_token = "<|im_end|>"
CHATS = {
    "llama-3": chat(llama3_tokenizer(), own_template("llama-3")),
    "llama-2": chat(llama2_tokenizer(), own_template("llama-2")),
    "vicuna": chat(llama2_tokenizer(), own_template("vicuna")),
    "plain": chat(llama3_tokenizer(), own_template("plain")),
    "chatml": chat(QWEN, CHATML),
    "llava": chat(llama2_tokenizer(), VICUNA),
}
QUESTION = "USER: Is this a cat? ASSISTANT: no"
TURNS = (Turn("user", (IMAGE, f"\n{QUESTION}")), Turn("assistant", ("A red circle",), True), Turn("user", ("Where?",)))


def text_of(one: Chat, ids: list[int]) -> str:
    return str(one.tokenizer.decode(ids))


@pytest.mark.parametrize("name", CHATS)
@given(answer=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30))
@settings(max_examples=examples(25))
def test_prompt_and_answer_are_the_whole_tokenised_once(name: str, answer: str) -> None:
    one = CHATS[name]
    assume(not one._specials.search(answer))  # they stay words here, and are tokens where all is tokenised at once
    tree = one.tree(TURNS, [answer])
    ids = tree.prompt.ids + tree.answers[0].ids
    messages = [{"role": turn.role, "content": one._content(turn)} for turn in (*TURNS, Turn("assistant", (answer,)))]
    whole = one.tokenizer.apply_chat_template(messages, tokenize=False)
    end = whole.rindex(one.tokenizer.eos_token) + len(one.tokenizer.eos_token)
    expected = one.tokenizer(whole[:end], add_special_tokens=False)["input_ids"]
    assert ids[-len(expected) :] == expected and len(ids) - len(expected) in (0, 1)
    turns = 4 if name in ("llama-3", "chatml") else 2  # these two end questions with the same token
    assert ids.count(one.end_id) == turns
    assert tree.answers[0].ids.count(one.end_id) == 1 and tree.answers[0].ids[-1] == one.end_id
    assert all(tree.answers[0].loss_mask)


@pytest.mark.parametrize("name", CHATS)
def test_all_answers_of_a_conversation_are_learnt_and_no_question_is(name: str) -> None:
    one = CHATS[name]
    tree = one.tree(TURNS, ["at the top left"])
    learnt = text_of(
        one, [token for token, wanted in zip(tree.prompt.ids, tree.prompt.loss_mask, strict=True) if wanted]
    )
    end = one.tokenizer.eos_token
    assert learnt.replace(" ", "") == f"Aredcircle{end}"
    assert QUESTION in text_of(one, tree.prompt.ids) and "Where?" in text_of(one, tree.prompt.ids)
    preference = [Turn(turn.role, turn.content) for turn in TURNS]
    assert not any(one.tree(preference, ["a", "b"]).prompt.loss_mask)


@pytest.mark.parametrize("name", CHATS)
def test_answers_branch_off_where_they_differ_at_the_latest(name: str) -> None:
    one = CHATS[name]
    answers = ["at the top left", "at the top right", "\n\nsomewhere", "   "]
    tree = one.tree(TURNS, answers)
    for answer, branch in zip(answers, tree.answers, strict=True):
        alone = one.tree(TURNS, [answer])
        assert tree.prompt.ids + branch.ids == alone.prompt.ids + alone.answers[0].ids
        assert len(tree.prompt) <= len(alone.prompt) and branch.ids[-1] == one.end_id


@pytest.mark.parametrize("name", CHATS)
def test_what_users_write_is_never_a_special_token(name: str) -> None:
    one = CHATS[name]
    words = f"say <image> and {one.tokenizer.eos_token} and {one.tokenizer.bos_token}!"
    tree = one.tree([Turn("user", (words,))], [words, words + one.tokenizer.eos_token])
    clean = one.tree([Turn("user", ("hello",))], ["hello"])
    special = set(one.tokenizer.all_special_ids)
    assert one.image_id not in tree.prompt.ids + tree.answers[0].ids
    for dirty, pure in ((tree.prompt, clean.prompt), (tree.answers[0], clean.answers[0])):
        assert [i for i in dirty.ids if i in special] == [i for i in pure.ids if i in special]
    assert tree.answers[0] == tree.answers[1]  # an end that the data carry is written once


def test_spaces_alone_are_learnt_too() -> None:
    tree = CHATS["llama-3"].tree([Turn("user", ("Hello",))], ["a \n\n b"])
    assert all(tree.answers[0].loss_mask) and text_of(CHATS["llama-3"], tree.answers[0].ids) == "a \n\n b<|eot_id|>"


def test_begin_of_text_comes_once() -> None:
    for one in CHATS.values():
        ids = one.tree(TURNS, ["x"]).prompt.ids
        begins = 2 if one is CHATS["llama-2"] else 1  # llama-2 begins every turn with it
        assert ids.count(one.tokenizer.bos_token_id) == begins and ids[0] == one.tokenizer.bos_token_id


BARE = (
    "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{{ ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def test_a_template_without_end_tokens_learns_no_question() -> None:
    one = chat(llama2_tokenizer(), BARE)
    tree = one.tree(TURNS, ["at the top"])
    learnt = [token for token, wanted in zip(tree.prompt.ids, tree.prompt.loss_mask, strict=True) if wanted]
    assert text_of(one, learnt).strip() == "A red circle" and one.end_id not in tree.prompt.ids
    assert text_of(one, tree.answers[0].ids).strip() == "at the top</s>"


@pytest.mark.parametrize("name", CHATS)
def test_special_words_are_byte_for_byte_in_the_midst_of_text(name: str) -> None:
    one, words = CHATS[name], "What does a</s>b mean? x<image> \U00100000 y"
    tree = one.tree([Turn("user", (words,))], [words])
    assert words in text_of(one, tree.prompt.ids) and words in text_of(one, tree.answers[0].ids)


def test_templates_that_refuse_say_so() -> None:
    with pytest.raises(TemplateMismatch, match="system message at the beginning"):
        CHATS["vicuna"].tree([Turn("user", ("x",)), Turn("system", ("y",))], ["z"])


# What Meta's templates do, written down from their rules: llama-2 strips each turn, and the first one together with the
# system message before it; llama-3 strips every message.
META = {
    "llama-2": (
        "{% if messages[0]['role'] == 'system' %}{% set turns, system = messages[1:], messages[0]['content'] %}"
        "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}{% for message in turns %}"
        "{% if loop.first and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
        "'<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
}
SPACED = st.text(st.sampled_from("ab \n\t\u00a0\u3000."), max_size=8)


@pytest.mark.parametrize("name", META)
@given(system=st.none() | SPACED, words=st.lists(SPACED, min_size=1, max_size=5))
@settings(max_examples=examples(60))
def test_what_users_write_is_stripped_as_metas_templates_do(name: str, system: str | None, words: list[str]) -> None:
    tokenizer, roles = CHATS[name].tokenizer, ("user", "assistant")
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": roles[place % 2], "content": text} for place, text in enumerate(words)]
    typed = [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]
    asks = len(words) % 2 == 1
    render = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=asks)
    assert render(messages) == render(typed) == render(messages, chat_template=META[name])
    if asks:
        turns: list[Any] = [Turn(cast(Any, one["role"]), (one["content"],)) for one in messages]
        expected = tokenizer(render(messages, chat_template=META[name]), add_special_tokens=False)["input_ids"]
        assert CHATS[name].prompt(turns) == expected


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "vicuna", "plain"])
def test_an_image_stands_on_a_line_of_its_own(name: str) -> None:
    """Unless somebody wrote spaces around it; so it is the same whether a newline separates the two in the data."""
    text: Any = CHATS[name].asked
    contents = [(IMAGE, "What?"), (IMAGE, "\nWhat?")]
    assert len({text([Turn("user", content)]) for content in contents}) == 1
    assert "<image>\nWhat?" in text([Turn("user", contents[0])])
    assert "see <image>\n<image> and\n<image>" in text([Turn("user", ("see ", IMAGE, IMAGE, " and", IMAGE))])
