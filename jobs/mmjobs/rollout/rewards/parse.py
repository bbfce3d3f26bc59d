"""What an answer says: its last number, its marked final answer, its text without what does not count."""

from __future__ import annotations

import math
import re
import unicodedata

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    rf"(?<![\w.])(?P<sign>(?<![\w)])[-+]\s?)?(?:(?P<whole>\d+) (?=\d+\s*/))?(?P<top>{_PLAIN})"
    rf"(?:\s*/\s*(?P<below>{_PLAIN}))?(?P<percent>\s*%)?"
)
_UNIT = re.compile(r"(?:\s+[^\d\s]\S*){0,2}|[°€£$]\S*")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_POWER_OF_TEN = re.compile(r"\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*\^\s*\{?\s*([-+]?\d+)\s*\}?")
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_FINAL = re.compile(
    r"final answer\s{0,9}(?:is\b)?\s{0,9}[:=]?[*_\s]{0,9}(?![:=*_\s])(?:the answer is:?\s)?([^\n]+)", re.IGNORECASE
)
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"</?answer>.*", re.IGNORECASE | re.DOTALL)
_FORMULA = re.compile(r"\$([^$]+)\$[.,]?(?:\s+[A-Z].*)?\s*\Z", re.DOTALL)
"""A formula at the beginning, and at most a sentence behind it."""
_SAID = re.compile(
    r"\banswer(?:\s(?:(?:to|for|of)\s[^.\n]{1,80}?\s)?(?:is|would be)\b|\s{0,9}:)[:\s]{0,9}", re.IGNORECASE
)
_BETWEEN = re.compile(r"\$\$?([^$]+)\$|\\\(([^$]+?)\\\)|\\\[([^$]+?)\\\]")
_IS = re.compile(r"\b(?:is|are|equals)\b|:\s")
_LAST = 2000
"""So many characters at the end of a text are read for what it says last."""
_YES_NO = re.compile(
    r"[\W_]*(yes|no)(?![\w'-])(?!\s*(?:/|or|and)\s*(?:yes|no)\b)"
    r"(?!\s+(?:doubt|idea|longer|one|way|clue|problem|wonder|matter|more)\b)",
    re.IGNORECASE,
)
"""A text that begins with the word; "no doubt" and "yes or no" say neither."""


def plain(text: str) -> str:
    """The text without the LaTeX around its numbers: `\\frac{1}{2}` as 1/2, `\\text{ cm}` as cm, no dollar signs."""
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    text = _TEXT.sub(r" \1", in_ascii(text))
    text = _SHORT_FRACTION.sub(r"\1/\2", _FRACTION.sub(r"\1/\2", text))
    text = _POWER_OF_TEN.sub(r"e\1", text)
    text = re.sub(r"\\[,;:! ()\[\]]|\\left|\\right|\$", "", text.replace("\\%", "%").replace("{,}", ","))
    return text.strip()


def in_ascii(text: str) -> str:
    """The digits of all scripts as 0 to 9, ½ as 1/2, ² as ^2, and the minus sign as a hyphen."""
    text = _VULGAR.sub(lambda sign: " " + unicodedata.normalize("NFKC", sign.group()).replace("\u2044", "/"), text)
    text = text.replace("\u00b2", "^2").replace("\u00b3", "^3").replace("\u2212", "-")
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit.group())), text)


def last_number(text: str) -> float | None:
    """The last number of a text; None if it has none."""
    matches = list(_NUMBER.finditer(plain(text)))
    return _value(matches[-1]) if matches else None


def number(text: str) -> float | None:
    """The number that a whole text is, with a unit and a full stop at most; None if it is more, or none."""
    value, rest = leading_number(text)
    return value if is_unit(rest) else None


def leading_number(text: str) -> tuple[float | None, str]:
    """The number that a text begins with, and what stands behind it; None and the text if it begins with none."""
    text = plain(text).rstrip(". ")
    match = _NUMBER.match(text)
    return (_value(match), text[match.end() :]) if match else (None, text)


def is_unit(rest: str) -> bool:
    """Whether what stands behind a number may be its unit: two words at most, or a currency."""
    return _UNIT.fullmatch(rest) is not None


def _value(match: re.Match[str]) -> float | None:
    top, below = (float(match[part].replace(",", "")) if match[part] else None for part in ("top", "below"))
    value = (top or 0.0) / below if below else top
    if value is None or below == 0 or not math.isfinite(value):
        return None
    value += float(match["whole"] or 0)
    return (-1 if (match["sign"] or "").strip() == "-" else 1) * value / (100 if match["percent"] else 1)


def close(first: float, truth: float, tolerance: float, relative: float) -> bool:
    """Whether a number is as near to the truth as one of the two tolerances allows."""
    return abs(first - truth) <= max(tolerance, relative * abs(truth))


def final_answer(text: str) -> str | None:
    """What the last \\boxed{..} or <answer>..</answer> holds, or stands behind the last "Final answer:": whichever
    comes last."""
    tagged = [(match.start(), match.group(1)) for match in _TAGGED.finditer(text)]
    marked = [one for one in (_last_boxed(text), _last_named(text), *tagged[-1:]) if one]
    if not marked:
        return None
    last = max(marked)[1].strip().strip("*_")
    formula = _FORMULA.match(last)
    return (formula.group(1) if formula else last).rstrip(".").strip()


def _last_named(text: str) -> tuple[int, str] | None:
    """Where the last "Final answer:" stands, and the rest of its line."""
    for place in reversed([match.start() for match in re.finditer("final answer", text, re.IGNORECASE)]):
        if named := _FINAL.match(text, place):
            return place, _TAG.sub("", named.group(1))
    return None


def said_last(text: str) -> str | None:
    """What a text without a marked answer ends with: its last formula between dollar signs, or what the last "is" or
    colon says; None if neither is there."""
    formulas = _BETWEEN.findall(text[-_LAST:])
    if formulas:
        return str(next(part for part in formulas[-1] if part)).strip()
    said = _IS.split(text[-_LAST:].rstrip(". \n"))
    return said[-1].strip() if len(said) > 1 and len(said[-1]) < 100 else None


def yes_or_no(text: str) -> str | None:
    """`yes` or `no`: the marked final answer, the last "the answer is ..", the first word, or the last line."""
    marked = final_answer(text)
    text = text if marked is None else marked
    stated = [text[match.end() : match.end() + 40] for match in _SAID.finditer(text)][::-1]
    for part in (*stated, text, text.rstrip().rpartition("\n")[2]):
        if match := _YES_NO.match(part):
            return match.group(1).lower()
    return None


def answer_of(text: str) -> str:
    """The final answer where a text marks one, else the whole text."""
    marked = final_answer(text)
    return text.strip() if marked is None else marked


def _last_boxed(text: str) -> tuple[int, str] | None:
    """Where the last whole \\boxed{..} begins, and what it holds; braces in it may be nested."""
    boxes = {match.end() - 1: match.start() for match in re.finditer(r"\\f?boxed\s*\{", text)}
    opened: list[int] = []
    last: tuple[int, str] | None = None
    for match in re.finditer(r"(?<!\\)[{}]", text) if boxes else ():
        if match.group() == "{":
            opened.append(match.start())
        elif opened and (place := opened.pop()) in boxes and (last is None or boxes[place] > last[0]):
            last = boxes[place], text[place + 1 : match.start()].strip()
    return last


def normalised(text: str, case: bool, punctuation: bool) -> str:
    """The text in one form of Unicode, with single spaces; without case and punctuation, unless these count."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    text = text if case else text.casefold()
    if punctuation:
        return text
    return " ".join(filter(None, (_bare(word) for word in text.split(" "))))


def _bare(word: str) -> str:
    """A word without the punctuation around it; a sign or a point before a digit belongs to a number."""
    bare = re.sub(r"^[^\w%$€£°]+|[^\w%$€£°]+$", "", word)
    before = word[: word.find(bare)] if bare else ""
    return f"{before[-1]}{bare}" if before and before[-1] in "-+.±" and bare[0].isdigit() else bare
