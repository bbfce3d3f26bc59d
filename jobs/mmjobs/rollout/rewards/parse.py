"""What an answer says: its last number, its letter, what it has boxed, its text without what does not count."""

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
_FINAL = re.compile(r"final answer\s*(?:is)?\s*[:=]?[*_ \t]*([^\n]+)", re.IGNORECASE)

_CHOICES = (
    re.compile(r"\\boxed\s*\{\s*(?:\\\w+\s*\{)?\s*\(?([A-Ja-j])\)?\s*\}"),
    re.compile(r"(?i:answer)(?i:\s+is)?\s*[:=]?\s*[*_`$\"']*\(?([A-J])(?![\w'])"),
    re.compile(r"\(([A-Ja-j])\)"),
    re.compile(r"^[ \t]*[*_`]*([A-J])[*_`]*\s*(?:[.):]|$)", re.MULTILINE),
    re.compile(r"(?i:choice|option)\s*[*_`]*([A-J])(?![\w'])"),
    re.compile(r"(?<![\w'])([A-HJ])[*_`.)\]]*\s*$"),
    re.compile(r"^\s*([a-j])\s*[.)]?\s*$"),
)
"""The forms in which an answer chooses a letter, the plainest first; of one form, the last in the answer counts."""


def plain(text: str) -> str:
    """The text without the LaTeX around its numbers: `\\frac{1}{2}` as 1/2, `\\text{ cm}` as cm, no dollar signs."""
    text = "\n".join(" ".join(line.split()) for line in text.splitlines() if line.strip())
    text = _TEXT.sub(r" \1", text.replace("\u2212", "-"))
    text = _SHORT_FRACTION.sub(r"\1/\2", _FRACTION.sub(r"\1/\2", text))
    text = _POWER_OF_TEN.sub(r"e\1", text)
    text = re.sub(r"\\[,;:! ]|\\left|\\right|\$", "", text.replace("\\%", "%").replace("{,}", ","))
    return text.strip()


def last_number(text: str) -> float | None:
    """The last number of a text; None if it has none."""
    matches = list(_NUMBER.finditer(plain(text)))
    return _value(matches[-1]) if matches else None


def number(text: str) -> float | None:
    """The number that a whole text is, with a unit and a full stop at most; None if it is more, or none."""
    text = plain(text).rstrip(". ")
    match = _NUMBER.match(text)
    return _value(match) if match and _UNIT.fullmatch(text, match.end()) else None


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


def letter(text: str) -> str | None:
    """The letter that an answer chooses, A to J; None if it chooses none."""
    for form in _CHOICES:
        if chosen := form.findall(text):
            return str(chosen[-1]).upper()
    return None


def final_answer(text: str) -> str | None:
    """What the last \\boxed{..} holds, or what stands behind the last "Final answer:", whichever comes later."""
    boxed, named = _last_boxed(text), list(_FINAL.finditer(text))
    if boxed and (not named or boxed[0] >= named[-1].start()):
        return boxed[1]
    return named[-1].group(1).strip().rstrip("*_.") if named else None


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
    return f"{before[-1]}{bare}" if before and before[-1] in "-+." and bare[0].isdigit() else bare
