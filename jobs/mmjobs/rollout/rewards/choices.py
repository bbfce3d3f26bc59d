"""Multiple choice: the options of a question, and the letter that an answer chooses, A to J.

A letter counts only where it is stated: in \\boxed{..}, behind "the answer is", as (B), as B. at the start of a line,
alone, or at the end of the answer behind words that choose. The last statement counts. The first capital of an answer
is never taken for a choice.
"""

from __future__ import annotations

import re

from mmjobs.rollout.rewards.parse import answer_of, final_answer, normalised, plain

Options = dict[str, str]
"""The text of each option by its letter."""

_LINE = re.compile(r"^[ \t]*[*_]{0,2}\(?([A-J])[.):][*_]{0,2}[ \t]+(\S[^\n]*)", re.MULTILINE)
_INLINE = re.compile(r"(?<!\w)\(([A-J])\)\s*([^()\n]+)")
_ANCHOR = re.compile(
    r"(?:\b(?:answer|choice|option)\b(?:\s(?:(?:to|for|of)\s[^.\n]{1,80}?\s)?(?:is|was|would be|should be|must be)\b)?"
    r"|答案[是为]?)\s{0,9}[:\uff1a=]?",
    re.I,
)
_WRAP = r"[\s*_`$\"'\[]*"
_FOLLOWS = r"(?:because|since|as|for|which|given|from|based|due|so|but|is|in|with)\b"
_STATED = re.compile(
    rf"{_WRAP}(?:(?:option|choice)\s+)?{_WRAP}(?:\((?P<round>[A-Ja-j])\)|(?P<bare>[B-HJ])(?![\w'+#-])|"
    rf"(?P<word>[AI])(?![\w'+#-])(?!\s+(?!{_FOLLOWS})\w)|(?P<small>[a-j])(?=\W*$))"
)
_SEVERAL = re.compile(
    r"[\s*_`$\"')\]]*(?:(?:or|and|/|&)[\s*_`$\"'(]*[A-J](?![\w'])|,[\s*_`$\"'(]*[A-J]\)?[\s*_`$\"'.]*$)"
)
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n|</answer>|,?\s(?:because|since)\s")
_NEGATED = re.compile(r"\b(?:not|n't|neither|nor|than)\s+(?:option\s+|choice\s+)?[*_\"'(]*$", re.I)
_REFUSED = re.compile(r"[*_\"')]*\s+(?:is|are|was|can)\s*(?:not|n't|wrong|incorrect|false|ruled)", re.I)
_ALONE = re.compile(r"[\s*_`$\"'(\[]*([A-Ja-j])[\s*_`$\"')\].:]*")
_WEAK = (
    re.compile(r"(?<![\w'])\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best)\b"),
    re.compile(r"\(([A-J])\)"),
    re.compile(r"^[ \t]*[*_`]*([A-J])[*_`]*(?:[.):]|[ \t]*$)", re.MULTILINE),
    re.compile(
        r"(?:[,:;.!]|\b(?:so|thus|hence|therefore|choose|chose|pick|select|go with|correct is|correct one is))"
        r"\s+[*_`(\[]*([B-HJ]|A(?=\W*$))[*_`.)\]]*\s*$"
    ),
)
"""Forms without the word "answer", the plainest first; of one form, the last in the answer counts."""

_LOOKED_AT = 50
"""So many statements of an answer are read at most, from its end."""


def options(prompt: str) -> Options:
    """The options that a prompt lists, `A. a cat` or `(B) a dog`, on lines of their own or behind each other."""
    for form in (_LINE, _INLINE):
        listed: Options = {}
        for letter, text in form.findall(prompt):
            if letter == "A":  # a later list is that of the question; an earlier one may be an example
                listed = {}
            if letter == chr(ord("A") + len(listed)):
                listed[letter] = text.strip().rstrip(",;")
        if len(listed) > 1:
            return listed
    return {}


def of_truth(truth: str, listed: Options) -> str | None:
    """The letter that a truth means: it is a letter, the text of an option, an option with its letter, or says so."""
    marked = answer_of(truth)
    if alone := _ALONE.fullmatch(plain(marked)):
        return alone.group(1).upper()
    if letter := _by_text(truth, listed):
        return letter
    with_letter, said = _LINE.match(marked), list(_ANCHOR.finditer(marked))
    if with_letter:
        return with_letter.group(1)
    return (_stated(marked[said[-1].end() :], listed) or None) if said else None


def chosen(answer: str, listed: Options) -> str | None:
    """The letter that an answer chooses, by itself or by the whole text of its option; None if it chooses none."""
    marked = final_answer(answer)
    if marked is not None:
        answer = plain(marked)
        if (letter := _stated(answer, listed)) is not None:
            return letter or None
    for anchor in reversed(list(_ANCHOR.finditer(answer))[-_LOOKED_AT:]):
        letter = _stated(answer[anchor.end() : anchor.end() + 2000], listed)
        if letter is not None:
            if _refused(answer, anchor, letter):
                continue
            return letter or None
    if alone := _ALONE.fullmatch(answer):
        return alone.group(1).upper()
    if options(answer):  # it repeats the list: what is listed is not chosen
        answer = "\n".join(line for line in answer.splitlines() if not _LINE.match(line))
    return _by_text(answer, listed) or _weakly(answer) or _by_text(answer.rstrip().rpartition("\n")[2], listed)


def _refused(answer: str, anchor: re.Match[str], letter: str) -> bool:
    """Whether a statement says that a letter is wrong: "option A is wrong", "not option A"."""
    behind = answer[anchor.end() : anchor.end() + 80]
    place = re.match(rf"{_WRAP}\(?{letter or '.'}", behind, re.I)
    return bool((place and _REFUSED.match(behind, place.end())) or _NEGATED.search(answer[: anchor.start()][-40:]))


def _stated(text: str, listed: Options) -> str | None:
    """The letter that a statement begins with; empty if it names several, None if it names none."""
    text = text.lstrip()
    end = _SENTENCE.search(text)
    span = text[: end.start()] if end else text
    if letter := _by_text(span, listed):
        return letter
    match = _STATED.match(span)
    if match is None:
        return None
    if _SEVERAL.match(span, match.end()):
        return ""
    return next(letter for letter in match.groups() if letter).upper()


def _by_text(text: str, listed: Options) -> str | None:
    """The letter of the one option whose whole text this is, with its letter or an article before it at most."""
    own = _compared(text)
    equal = [letter for letter, one in listed.items() if own in (_compared(one), _compared(f"{letter} {one}"))]
    return equal[0] if own and len(equal) == 1 else None


def _compared(text: str) -> str:
    return re.sub(r"^(?:the|an?)\s(?=.)", "", normalised(text, case=False, punctuation=False))


def _weakly(answer: str) -> str | None:
    for form in _WEAK:
        for match in reversed(list(form.finditer(answer))):
            if _NEGATED.search(answer[max(0, match.start() - 40) : match.start()]) or _REFUSED.match(
                answer, match.end()
            ):
                continue
            if _SEVERAL.match(answer, match.end()) or _joined(answer[max(0, match.start() - 20) : match.start()]):
                return None
            return str(match.group(1)).upper()
    return None


def _joined(before: str) -> bool:
    """Whether the letter is the last of "A or B" or "A, B"."""
    return re.search(r"(?<![\w'])\(?[A-J]\)?(?:\s+or\s*|\s*,\s*)?\Z", before) is not None
