"""How often drift is seen in vain and in earnest: python benchmarks/drift_alarms.py [--table FILE] [--windows 100]

Images of the feature table are parted at random, so that both halves are of one distribution: one is the reference, the
other the traffic. Each image is there once, under a delivery by chance. Undrifted windows count false alarms. Then each
of five generator families is kept out of the reference and makes 30 % of the traffic; and all traffic comes as web
copies.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from lifecycle.reference import Reference
from lifecycle.shift import Window, compare
from training.feature_table import read_columns, read_table, usable
from utils.profiles import DEFAULT_PROFILE, PROFILES

TABLE = Path(__file__).parents[1] / "training" / "tables" / f"{PROFILES[DEFAULT_PROFILE].fusion}.parquet"
SIZE, SHARE, PATIENCE = 200, 0.3, 3
FAMILIES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--windows", type=int, default=100)
    arguments = parser.parse_args()
    table, columns = read_table(arguments.table), read_columns(arguments.table)
    taken = usable(columns)
    generators = np.array(columns["generator"], np.str_)[taken]
    paths = np.array(columns["filepath"], np.str_)[taken]
    fixed = np.isin(table.deliveries, ("clean", "web", "hard")) & np.isfinite(table.matrix).sum(axis=1).__gt__(20)
    # Rows of one split and of fixed deliveries: one population.
    table, generators, paths = table.rows(fixed), generators[fixed], paths[fixed]
    rng = np.random.default_rng(0)
    images = np.unique(paths)
    known = np.isin(paths, rng.choice(images, len(images) // 2, replace=False))
    columns_used = np.isfinite(table.matrix).any(axis=0)
    signals = tuple(name for name, used in zip(table.inputs, columns_used, strict=True) if used)
    matrix = table.matrix[:, columns_used]
    score = np.nan_to_num(table.matrix[:, table.inputs.index("clip_b16_prob")], nan=0.5)

    def once(rows):
        shuffled = rng.permutation(np.flatnonzero(rows))
        return shuffled[np.unique(paths[shuffled], return_index=True)[1]]

    def drawn(rows, count):
        """Images, some of them more than once where there are too few."""
        found = once(rows)
        return rng.choice(found, count, replace=len(found) < count)

    def reference(rows):
        rows = once(rows)
        known = matrix[rows].astype(np.float32)
        return Reference(signals, known, score[rows], table.deliveries[rows], table.sources[rows])

    def window(rows):
        chosen = drawn(rows, SIZE)
        return Window(matrix[chosen], score[chosen], table.deliveries[chosen], np.full(SIZE, "real"))

    def mixed(rows, new):
        many = round(SIZE * SHARE)
        chosen = np.concatenate([drawn(rows, SIZE - many), drawn(new, many)])
        return Window(matrix[chosen], score[chosen], table.deliveries[chosen], np.full(SIZE, "real"))

    print(f"{len(images)} images, {len(once(known))} of the reference, {len(signals)} signals")
    alarms = [compare(reference(known), window(~known)) for _ in range(arguments.windows)]
    causes = Counter(each.cause for each in alarms)
    count = sum(each.alarm for each in alarms)
    moved = Counter(move.name for each in alarms for move in each.moved)
    print(f"undrifted: {count} alarms in {arguments.windows} windows of {SIZE}; {dict(causes)} {dict(moved)}")
    counts = Counter(generators[(generators != "") & (generators != "not stated")]).most_common(FAMILIES)
    for family, count in counts:
        new = generators == family
        base = reference(known & ~new)
        found, seen = None, []
        for number in range(1, PATIENCE + 1):
            current = mixed(~known & ~new, new)
            shift = compare(base, current.joined(seen))
            seen.append(current)
            if shift.alarm and found is None:
                found = (number, shift.cause, [each.name for each in shift.moved[:3]])
        print(f"{family} ({count} rows): {found or 'not noticed'}")
    shift = compare(reference(known), window(~known & (table.deliveries == "web")))
    print(f"all traffic as web copies: {shift.cause}, {[each.name for each in shift.moved[:3]]}")


if __name__ == "__main__":
    main()
