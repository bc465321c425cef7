"""The datasheet of the data set, from the catalogue: python -m training.datasheet > docs/dataset.md

Follows Gebru et al., "Datasheets for Datasets" (2021), as far as a set of facts about other people's images can.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from training.build_dataset import CAP, LONGEST, SMALLEST
from training.cleaning import HASH_SIDE, NEAR
from training.datasets import LABELS, SPLITS
from training.sources import Source, read_catalogue, vocabulary
from training.splits import SHARES
from utils.exits import Exit, command

PAGE = """\
# The data set

Facts about {sources} sources and {images} images of known origin: {real} images of {real_sources} real sources and
{ai} images of {ai_sources} AI sources. The images are not part of this project; the facts are, in
`training/catalogue/`. This page is made by `python -m training.datasheet > docs/dataset.md`; a test compares.

## What it is for

Training and validating the detectors and the fusion of this project. A row of the catalogue is one source: the files
that one pattern names in one repository, package or folder. Its images have one label, one origin and one kind of
evidence. A source, not an image, is the unit of every split, weight and interval.

## Rebuild it

    python -m training.build_dataset --mirror MIRROR --out OUT --check     # which sources cannot be had
    python -m training.build_dataset --mirror MIRROR --out OUT             # OUT/dataset.csv, images/, rejected.csv

`MIRROR` holds a git snapshot of each repository as `owner+name` (bare, as `owner+name/repo`, or as a clone),
packages as they were downloaded, and folders. Several folders may be named. Nothing is downloaded and nothing
of a source is run. At most {cap} images of a source are taken, spread over its sorted paths: a linear head on
frozen features is saturated by about ten images of a source, fine-tuning gains from some more. Left out, with
the reason in `rejected.csv`: what cannot be decoded, what has a side under {smallest} px, what is over
{longest} times as long as high, what is flat or animated, and copies. A copy has the same bytes, the same
pixels, or a difference hash within {near} of {bits} bits. Copies under two labels are left out on both sides.
`training/catalogue/hashes/` has the beginning of every image's sha256, so a rebuilt set is the same or says
where it differs. A new source gets a row without a split, then `python -m training.splits`, then a build with
`--record`.

## Split

{split_table}

A group goes to one split as a whole: sources that share an author, a set of prompts, motifs or a published set
count as one. There are {groups} groups. `python -m training.splits` draws the groups that have no split yet:
the largest first, groups of one size in the order of the hash of their name, each to the split that brings
every stratum (label; and within it content, kind, family of the generator, subject) closest to {shares}. A
split that has been drawn is never changed.

## Content

A trainer balances by it within the label: where AI is art and real is photography, a network learns that.

{content_table}

## Kind

How the pictures came to be or, of AI, what they pretend to be.

{kind_table}

## Subject

{subject_table}

## Generator

{family_table}

## Why the labels are believed

{grade_table}

## Licence

`none stated` is what the publisher says, not a permission. Where nothing is stated, only research use is claimed, and
nothing of it is shown or passed on.

{licence_table}

## What was recovered and what is lost

The models of November 2026 were trained and fused on 506 sources that stood in no file. The lists that were
kept name 115 sources of the first collection and 101 of later searches. One of these was left out because its
label was guessed, two because none of their files is in the snapshot or fit to learn from; some were parted by
generator, a few were added beside them. All snapshots and packages that these lists name could be had. At
least 290 of the 506 sources are lost: their repositories are named nowhere. Numbers on this set and numbers in
cards of that month are therefore not comparable.

## What it is bad for

- It is no sample of what people send. It holds what public repositories hold: portfolios, prompts, quizzes, courses.
- Real photographs of the kinds that look generated are few: press, night, product on white, video.
- Of AI, {unnamed} sources name no generator or mix several; of the newest generators many have one to three sources.
- Galleries of prompts were compressed again by a social network, and their generator is the gallery's claim.
- Many AI images show one prompt in several versions, many real ones one place or one day. Sources weigh alike
  for that reason.
- The container says much about the label: formats, sizes and metadata differ. Training must hide it by random
  deliveries; `python -m scripts.clean_dataset` reports how much it gives away.
- Labels that are only evident or stated can be wrong. Looked at on contact sheets, no source looked wrong as a whole.
- Some pictures show private persons who did not agree to this use. Train and measure; do not publish, do not
  identify.
- Edited photographs are not in it: `training.forgeries` makes those, with masks.
"""


def page(sources: Sequence[Source]) -> str:
    """The whole page, as Markdown."""
    by_label = {label: [each for each in sources if each.label == label] for label in LABELS}
    ai = by_label["ai"]
    licences = Counter(each.licence for each in sources)
    return PAGE.format(
        sources=len(sources),
        images=_images(sources),
        real=_images(by_label["real"]),
        real_sources=len(by_label["real"]),
        ai=_images(ai),
        ai_sources=len(ai),
        cap=CAP,
        smallest=SMALLEST,
        longest=LONGEST,
        near=NEAR,
        bits=HASH_SIDE**2,
        groups=len({each.group for each in sources}),
        shares=", ".join(f"{share:.0%} {split}" for split, share in SHARES.items()),
        unnamed=sum(each.family in ("unknown", "mixed", "local") for each in ai),
        split_table=_by_label("split", SPLITS, sources),
        content_table=_by_word("content", sources),
        kind_table=_by_word("kind", sources),
        subject_table=_by_word("subject", sources),
        family_table=_families(ai),
        grade_table=_by_word("grade", sources),
        licence_table=_by_label("licence", [word for word, _ in licences.most_common()], sources),
    )


def _by_word(column: str, sources: Sequence[Source]) -> str:
    """A table of the words of the vocabulary that the sources use, in its order."""
    meanings = vocabulary()[column]
    return _by_label(column, meanings, sources, meanings)


def _by_label(
    column: str, words: Iterable[str], sources: Sequence[Source], meanings: Mapping[str, str] | None = None
) -> str:
    lines = [
        f"| {column} | real: sources | images | AI: sources | images |",
        "|---|---|---|---|---|",
    ]
    for word in words:
        found = [each for each in sources if getattr(each, column) == word]
        if found:
            cells = []
            for label in LABELS:
                ours = [each for each in found if each.label == label]
                cells += [str(len(ours)), str(_images(ours))]
            name = f"`{word}`: {meanings[word]}" if meanings else word
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _families(sources: Sequence[Source]) -> str:
    lines = ["| family | sources | images | " + " | ".join(SPLITS) + " |", "|---|---|---|" + "---|" * len(SPLITS)]
    for word, meaning in vocabulary()["family"].items():
        found = [each for each in sources if each.family == word]
        if found:
            counts = Counter(each.split for each in found)
            splits = " | ".join(str(counts[split]) for split in SPLITS)
            lines.append(f"| `{word}`: {meaning} | {len(found)} | {_images(found)} | {splits} |")
    return "\n".join(lines)


def _images(sources: Iterable[Source]) -> int:
    return sum(int(each.images or 0) for each in sources)


@command
def main() -> int:
    sys.stdout.write(page(read_catalogue()))
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
