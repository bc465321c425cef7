"""Draw the split of every source of the catalogue that has none yet: python -m training.splits

A group of sources goes to one split as a whole: sources that share an author, prompts or motifs are no independent
witnesses. A split that has been drawn is never changed, so that nothing is validated on what an older network learnt.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from training.sources import CATALOGUE, Source, read_catalogue, read_file, write_file
from utils.errors import TableError
from utils.exits import Exit, command, command_parser

SHARES = {"train": 0.5, "fusion": 0.2, "val": 0.3}  # of the sources
STRATA = ("content", "kind", "family", "subject")  # each within its label

Stratum = tuple[str, ...]


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = command_parser("python -m training.splits", __doc__)
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE)
    folder = parser.parse_args(argv).catalogue
    splits = draw(read_catalogue(folder))
    for path in sorted(folder.glob("*.csv")):
        write_file(path, [replace(source, split=splits[source.group]) for source in read_file(path)])
    print(", ".join(f"{count} groups in {split}" for split, count in sorted(Counter(splits.values()).items())))
    return Exit.DONE


def draw(sources: Iterable[Source]) -> dict[str, str]:
    """Group -> split, with every stratum's sources spread as SHARES says, as well as whole groups allow.

    Greedy: the largest group first, each to the split that leaves the smallest sum of squared deviations over all
    strata. Groups of one size come in the order of the hash of their names, which no one can choose.

    Raises:
        TableError: a group is in two splits already.
    """
    groups: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        groups[source.group].append(source)
    totals = Counter(stratum for members in groups.values() for stratum in _strata(members))
    counts: Counter[tuple[Stratum, str]] = Counter()
    splits: dict[str, str] = {}
    for group, members in groups.items():
        drawn = {source.split for source in members if source.split}
        if len(drawn) > 1:
            raise TableError(f"the group {group} is in {' and '.join(sorted(drawn))}; a group has one split")
        if drawn:
            splits[group] = drawn.pop()
            counts.update((stratum, splits[group]) for stratum in _strata(members))
    for group in sorted(groups.keys() - splits.keys(), key=lambda name: (-len(groups[name]), _hash(name))):
        added = Counter(_strata(groups[group]))
        splits[group] = min(SHARES, key=lambda split: _cost(added, split, totals, counts))
        counts.update({(stratum, splits[group]): count for stratum, count in added.items()})
    return splits


def _strata(members: Iterable[Source]) -> Iterator[Stratum]:
    for source in members:
        yield (source.label,)
        for column in STRATA:
            yield (source.label, column, getattr(source, column))


def _cost(
    added: Mapping[Stratum, int],
    split: str,
    totals: Mapping[Stratum, int],
    counts: Mapping[tuple[Stratum, str], int],
) -> float:
    """How much the squared deviations from the shares change if a group goes to ``split``."""
    return sum(
        (counts[stratum, split] + count - SHARES[split] * totals[stratum]) ** 2
        - (counts[stratum, split] - SHARES[split] * totals[stratum]) ** 2
        for stratum, count in added.items()
    )


def _hash(name: str) -> str:
    return sha256(name.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
