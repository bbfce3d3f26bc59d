"""One page about an evaluation, which opens in any browser: the tables, then samples with their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from mmlaunch.results import pictures
from mmlaunch.results import record as read
from mmlaunch.results.record import Record
from mmlaunch.results.samples import STATES, Samples
from mmlaunch.results.summary import Evaluation
from mmlaunch.results.table import Table, number, tables

LONGEST = 4000
"""The most characters of a text that are shown; beyond `_SHORT`, it is folded."""
_SHORT = 500

_STYLE = """
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 1.6rem 0 .4rem; } h1, h2 { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .8rem; text-align: right; vertical-align: baseline; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
td:first-child, th:first-child { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere;
  min-width: 8rem; max-width: 18rem; }
td.text, th.text { text-align: left; } td:first-child.below { padding-left: 1rem; }
th { font-weight: 600; color: #555; } tr.total td { font-weight: 600; }
.choice { position: absolute; opacity: 0; }
.chips { display: flex; flex-wrap: wrap; gap: .35rem; margin: .4rem 0; }
.chips label { border: 1px solid #bbb; border-radius: 1rem; padding: .05rem .7rem; cursor: pointer; max-width: 100%;
  overflow-wrap: anywhere; }
article { display: grid; grid-template-columns: minmax(0, 15rem) minmax(0, 1fr); gap: 0 1.2rem;
  border-top: 1px solid #bbb; padding: 1rem 0; }
article.bare { grid-template-columns: minmax(0, 1fr); }
article header { grid-column: 1 / -1; display: flex; flex-wrap: wrap; gap: .2rem .8rem; margin-bottom: .5rem;
  color: #555; overflow-wrap: anywhere; }
.state { border-radius: .25rem; padding: 0 .5rem; color: #fff; background: #666; }
.failed, .unparsed { background: #92400e; } .wrong, .lost { background: #b91c1c; } .right, .won { background: #15803d; }
.pictures { display: flex; flex-direction: column; gap: .4rem; align-items: flex-start; overflow-wrap: anywhere; }
img { max-width: 100%; max-height: 15rem; border: 1px solid #ccc; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem .9rem; margin: 0;
  align-content: start; }
dt { color: #777; } dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; } .note { color: #777; } code { background: #f2f2f2; padding: 0 .25rem; }
@media (max-width: 42rem) {
  article { grid-template-columns: minmax(0, 1fr); } .pictures { margin-bottom: .6rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .4rem; }
  td, th { padding: .25rem .4rem; }
}
"""

Pictures = Callable[[str], str | None]


def page(name: str, evaluation: Evaluation, samples: Samples, picture: Pictures = pictures.source_of) -> str:
    """The page as text, of records that were added one by one: `samples.add(record, evaluation.add(record))`.

    `picture` gives what an <img> shows of a file, or None for a link to it.
    """
    title = escape(f"{name}: results")
    shown = list(samples)
    sources, states = samples.sources, [state for state in STATES if any(state == one for one, *_ in shown)]
    articles = "".join(_article(*one, sources, states, picture) for one in shown)
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}{_filters(sources, states)}</style>"
        f"<h1>{title}</h1>{''.join(_table(one) for one in tables(evaluation))}"
        f"<h2>samples</h2><p class=note>{len(shown):,} of {evaluation.rows:,} rows: at most {samples.most:,} of each "
        f"source and kind, the bad ones first.</p>{_inputs(sources, states)}<main>{articles}</main></html>\n"
    )


def _table(table: Table) -> str:
    rows = ""
    for row in table.rows:
        total = " class=total" if row[0].startswith(("overall,", "macro,")) else ""
        rows += f"<tr{total}>{_cells('td', table, row)}</tr>"
    head = f"<tr>{_cells('th', table, table.head)}</tr>"
    return f"<h2>{escape(table.title)}</h2><div class=wide><table>{head}{rows}</table></div>"


def _cells(tag: str, table: Table, row: Sequence[str]) -> str:
    cells = ""
    for head, content in zip(table.head, row, strict=True):
        kind = " class=text" if head == "metric" else " class=below" if content.startswith("  ") else ""
        cells += f"<{tag}{kind}>{escape(content.strip())}</{tag}>"
    return cells


def _filters(sources: Sequence[str], states: Sequence[str]) -> str:
    """A chosen source hides the samples of all others, and so does a chosen state: no script is needed."""
    rules = []
    for group, names in (("s", sources), ("k", states)):
        for place in range(len(names)):
            rules.append(f"#{group}{place}:checked ~ main article:not(.{group}{place}) {{ display: none; }}")
        for place in ("", *range(len(names))):
            label = f".chips label[for={group}{place}]"
            rules.append(f"#{group}{place}:checked ~ {label} {{ background: #222; color: #fff; }}")
            rules.append(f"#{group}{place}:focus-visible ~ {label} {{ outline: 2px solid; }}")
    return "\n".join(rules)


def _inputs(sources: Sequence[str], states: Sequence[str]) -> str:
    inputs, chips = "", ""
    for group, names in (("s", sources), ("k", states)):
        if len(names) < 2:
            continue
        chips += "<div class=chips>"
        for place, name in (("", "all"), *enumerate(names)):
            checked = " checked" if place == "" else ""
            inputs += f"<input class=choice type=radio name={group} id={group}{place}{checked}>"
            chips += f"<label for={group}{place}>{escape(name)}</label>"
        chips += "</div>"
    return inputs + chips


def _article(
    state: str, record: Record, score: float | None, sources: Sequence[str], states: Sequence[str], picture: Pictures
) -> str:  # fmt: skip
    images = read.texts(record, "images")
    classes = [f"s{sources.index(read.source(record))}", f"k{states.index(state)}", *([] if images else ["bare"])]
    shown = "".join(_picture(path, picture) for path in images)
    name = record.get("id") if record.get("id") is not None else f"row {record.get('index', '?')}"
    origin = [read.source(record), str(name), *read.texts(record, "subset")]
    colour = state.partition(" ")[0]
    header = f"<span class='state {colour}'>{state}</span><span>score {number(score)}</span>"
    header += "".join(f"<span>{escape(one)}</span>" for one in origin)
    return (
        f"<article class='{' '.join(classes)}'><header>{header}</header>"
        f"{f'<div class=pictures>{shown}</div>' if images else ''}<dl>{_facts(record)}</dl></article>"
    )


def _picture(path: str, picture: Pictures) -> str:
    source, link = picture(path), escape(pictures.link_to(path))
    if source is None:
        return f"<a href='{link}'>{escape(path)}</a>"
    return f"<a href='{link}'><img src='{escape(source)}' alt='{escape(path)}' loading=lazy></a>"


def _facts(record: Record) -> str:
    facts = [("question", _text(read.prompt(record)))] if record.get("prompt") else []
    facts += [("truth" if len(read.texts(record, "truths")) == 1 else "truths", _listed(read.texts(record, "truths")))]
    if failure := read.failure(record):
        facts.append(("failed", _text(failure)))
    facts += _answers(record) + _later_turns(record)
    return "".join(f"<dt>{name}</dt><dd>{content}</dd>" for name, content in facts if content)


def _answers(record: Record) -> list[tuple[str, str]]:
    """Each answer with its verdict and what was read out of it."""
    written = next((texts for name in ("scored", "predictions") if (texts := read.texts(record, name))), [])
    if not written and read.kind(record) == read.PAIR:
        written = [*read.texts(record, "chosen"), *read.texts(record, "rejected")]
    kinds, finish, scores = (read.texts(record, "kinds"), read.texts(record, "finish"), read.scores(record))
    extracted, facts = read.extracted(record), []
    for place, text in enumerate(written):
        notes = [kinds[place]] if place < len(kinds) and kinds[place] not in ("right", "wrong", "scored") else []
        notes += ["cut at its greatest length"] if finish[place : place + 1] == ["length"] else []
        notes += [f"score {number(scores[place])}"] if len(written) > 1 and place < len(scores) else []
        content = _text(text) + (f" <span class=note>({escape(', '.join(notes))})</span>" if notes else "")
        facts.append((f"answer {place + 1}" if len(written) > 1 else "answer", content))
        if place < len(extracted) and extracted[place] is not None:
            facts.append(("read as", f"<code>{escape(_cut(str(extracted[place])))}</code>"))
    return facts


def _later_turns(record: Record) -> list[tuple[str, str]]:
    """What was answered to the further turns of a conversation; the first turn's answers are the record's own."""
    facts = []
    for turn, answers in enumerate(read.later_turns(record), 2):
        for place, text in enumerate(answers, 1):
            name = f"turn {turn}, answer {place}" if len(answers) > 1 else f"turn {turn}"
            facts.append((name, _text(text)))
    return facts


def _listed(texts: Sequence[str]) -> str:
    return " · ".join(escape(_cut(text)) for text in texts)


def _text(text: str) -> str:
    """A text; a long one folded."""
    if len(text) <= _SHORT:
        return escape(text) if text.strip() else "<span class=note>(empty)</span>"
    return f"<details><summary>{escape(text[:_SHORT])} …</summary>{escape(_cut(text)[_SHORT:])}</details>"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"
