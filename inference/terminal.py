"""A verdict for people at a terminal. Says nothing that the JSON does not."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inference.batch import MOST_SUSPICIOUS_FIRST, Line, counts, in_order, told
from inference.words import TIER_WORDS, decided_by
from utils.contracts import Reason, Verdict
from utils.errors import VerifyError

TIER_STYLES = {"real": "green", "likely_real": "green", "inconclusive": "yellow", "likely_ai": "red", "ai": "bold red"}


class Terminal(Console):
    """A console whose caller sees the reader go away, as after ``| head``, where rich would end with an error."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> None:
        raise  # rich calls this while it handles the BrokenPipeError


def show_verdict(console: Console, verdict: Verdict, *, short: bool = False) -> None:
    """One line when ``short``; otherwise the verdict, its reasons, what was missing and what to beware of."""
    source = printable(verdict.source)
    head = Text.assemble(
        (f"{verdict.label:<7}", TIER_STYLES[verdict.tier]),
        f" {verdict.fusion_prob:.2f}  ",
        (f"{TIER_WORDS[verdict.tier]:<20}", TIER_STYLES[verdict.tier]),
        f"  {source} (by {decided_by(verdict)})" if short else f"  {source}",
    )
    console.print(head, soft_wrap=True)
    if short:
        return
    console.print(
        f"  decided by {decided_by(verdict)}, confidence {verdict.confidence:.2f}; "
        f"{verdict.width} x {verdict.height} {verdict.format}; fusion {verdict.models['fusion']}",
        style="dim",
    )
    numbers = [reason for reason in verdict.reasoning if reason.feature is not None]
    _show_reasons(console, [reason for reason in verdict.reasoning if reason.feature is None])
    if numbers:
        console.print("  the strongest numbers behind it", style="dim")
        _show_reasons(console, numbers, "dim")
    for warning in verdict.warnings:
        console.print(Text(f"  warning: {printable(warning)}", style="yellow"))
    _show_list(console, "unavailable", verdict.unavailable)
    _show_list(console, "written", verdict.artifacts)
    spent = sum(verdict.timings_ms.values())
    measured = sum(value is not None for value in verdict.numbers.values())
    console.print(f"  {measured} of {len(verdict.numbers)} signals measured in {spent:.0f} ms", style="dim")


def show_summary(console: Console, lines: Sequence[Line]) -> None:
    """How many images of each tier, then every image that is not plainly real, the most suspicious first."""
    found = counts(lines)
    for tier in MOST_SUSPICIOUS_FIRST:
        console.print(Text(f"{found[tier]:>7}  {TIER_WORDS[tier]}", style=TIER_STYLES[tier] if found[tier] else "dim"))
    if found["error"]:
        console.print(Text(f"{found['error']:>7}  could not be judged", style="red"))
    for each in in_order(lines):
        if each.tier in ("ai", "likely_ai", "inconclusive"):
            head = Text(f"  {each.fusion_prob:.2f}  {TIER_WORDS[each.tier]:<20}", style=TIER_STYLES[each.tier])
            console.print(head.append(f"  {printable(each.source)}{told(each)}", style=""), soft_wrap=True)
        elif each.error:
            console.print(Text(f"  {printable(each.source)}: {printable(each.error)}", style="red"), soft_wrap=True)


def show_error(console: Console, source: str, error: VerifyError) -> None:
    console.print(
        Text.assemble(("ERROR  ", "red"), f" {error.code}  {printable(source)}: {printable(str(error))}"),
        soft_wrap=True,
    )


def printable(text: str) -> str:
    """Without control characters: file names and metadata come from strangers, and a terminal obeys escapes."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _show_reasons(console: Console, reasons: Sequence[Reason], style: str = "") -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for reason in reasons:
        table.add_row(_arrow(reason.contribution), Text(printable(reason.text), style=style))
    console.print(table)


def _arrow(contribution: float | None) -> Text:
    if contribution is None:
        return Text("·", style="dim")
    word, style = ("AI", "red") if contribution > 0 else ("real", "green")
    return Text(f"{contribution:+.2f} {word}", style=style)


def _show_list(console: Console, title: str, entries: dict[str, str]) -> None:
    """Names that share a reason stand on one line."""
    names: dict[str, list[str]] = {}
    for name, text in entries.items():
        names.setdefault(text, []).append(name)
    for text, group in names.items():
        shown = ", ".join(group) if len(group) < 4 else f"{group[0]} and {len(group) - 1} more"
        console.print(Text(f"  {title}: {shown}: {printable(text)}", style="dim"), soft_wrap=True)
