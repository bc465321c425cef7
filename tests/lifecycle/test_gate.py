"""The gate: each way to be worse is refused with its reason; a better challenger is promoted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lifecycle.gate import Bounds, bounds_from, decide, markdown
from lifecycle.golden import EDITS, SHARED, Facts, read_golden
from lifecycle.golden import Judged as Shown
from tests.fakes import fusion_model
from training.evaluation import Judged
from training.feature_table import Table
from utils.deliveries import DELIVERIES
from utils.errors import TableError

SOURCES, IMAGES = 40, 12
FACTS = Facts({"china": Shown("real", ("real", "likely_real"), 0.1)}, 0.5, 0.0, 1.0, 300.0)


def judged(
    strength: float = 3.0, shift: float = 0.0, threshold: float = 0.5, scale: float = 1.0, seed: int = 0
) -> Judged:
    """A model that parts the labels by ``strength``; sources and noise are the same for every model."""
    rng = np.random.default_rng(seed)
    source = np.repeat(np.arange(SOURCES), IMAGES * len(DELIVERIES))
    labels = (source % 2).astype(np.int64)
    noise = rng.normal(0, 1, len(source)) + rng.normal(0, 0.5, SOURCES)[source]
    log_odds = scale * strength / 1.25 * (strength * (2 * labels - 1) / 2 + noise + shift)  # calibrated at scale 1
    table = Table(
        ("effnet_prob",),
        np.zeros((len(source), 1)),
        labels,
        np.char.add("s", source.astype(str)),
        np.full(len(source), "val"),
        np.tile(DELIVERIES, SOURCES * IMAGES),
    )
    known = tuple(
        {"filepath": f"{i // len(DELIVERIES)}.png", "kind": "" if label else ("portrait" if s % 4 else "photo")}
        for i, (s, label) in enumerate(zip(source, labels, strict=True))
    )
    return Judged(fusion_model("effnet_prob"), threshold, table, known, 1 / (1 + np.exp(-log_odds)))


BOUNDS = Bounds(real=0.9, real_kind=0.85)
CHAMPION = judged()


def reasons(challenger: Judged = CHAMPION, new: Facts = FACTS) -> list[str]:
    return list(decide(CHAMPION, challenger, FACTS, new, BOUNDS).reasons)


def test_a_better_challenger_and_an_equal_one_are_promoted() -> None:
    assert reasons() == []
    decision = decide(CHAMPION, judged(4.0), FACTS, FACTS, BOUNDS)
    assert decision.promote
    old, new = decision.compared["AI found, clean"]
    assert new > old
    assert "is promoted" in markdown(decision, "one", "two")


def test_less_ai_found_beyond_noise_is_refused_and_within_noise_is_not() -> None:
    refused = reasons(judged(threshold=0.8))
    assert len([each for each in refused if "AI images found" in each]) == len(DELIVERIES)
    assert not any("real images" in each for each in refused)
    assert reasons(judged(3.0, shift=-0.001)) == []


def test_real_images_called_ai_are_refused_by_delivery_and_by_kind() -> None:
    refused = reasons(judged(shift=0.8))
    assert any(each.startswith("real images called real, web") for each in refused)
    assert any("kind portrait" in each for each in refused)


def test_numbers_that_do_not_mean_what_they_say_are_refused() -> None:
    refused = reasons(judged(scale=0.12))
    assert [each.partition(":")[0] for each in refused] == ["calibration error"]


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"separable": 0.8}, "PNG and JPEG"),
        ({"separable": 0.2}, "PNG and JPEG"),
        ({"metadata": 0.02}, "metadata"),
        ({"seconds": 1.3}, "time per image: 1.00 -> 1.30 s"),
        ({"megabytes": 400.0}, "memory"),
        ({"images": {"china": Shown("ai", ("real", "likely_real"), 0.9)}}, "golden image china: tier ai"),
        ({"images": {}}, "without a verdict: china"),
    ],
)
def test_each_fact_of_the_golden_set_has_its_reason(changed: dict[str, object], word: str) -> None:
    (reason,) = reasons(new=replace(FACTS, **changed))
    assert word in reason


def test_memory_is_not_compared_where_the_system_does_not_say() -> None:
    unknown = replace(FACTS, megabytes=0.0)
    assert decide(CHAMPION, CHAMPION, unknown, FACTS, BOUNDS).promote


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_the_childs_own_and_not_that_of_the_process_that_started_it() -> None:
    held = np.ones(400 << 17)  # 400 MiB, which ru_maxrss of a child would begin with
    code = "from lifecycle.golden import peak_megabytes; x = bytearray({} << 20); x[::4096] = b'1' * len(x[::4096]); "
    code += "print(peak_megabytes())"
    peaks = [
        float(subprocess.run([sys.executable, "-c", code.format(size)], capture_output=True, check=True).stdout)
        for size in (1, 200)
    ]
    assert held.nbytes >> 20 == 400
    assert peaks[0] < 380
    assert 150 < peaks[1] - peaks[0] < 300


def test_every_reason_is_listed_at_once() -> None:
    found = reasons(judged(threshold=0.8), replace(FACTS, separable=0.9, seconds=2.0))
    assert len(found) >= 3


def test_a_champion_beyond_a_bound_may_be_kept_up_with() -> None:
    weak = judged(2.0)
    assert decide(weak, weak, FACTS, FACTS, BOUNDS).promote
    beyond = replace(FACTS, separable=0.58, metadata=0.01)
    assert decide(CHAMPION, CHAMPION, beyond, beyond, BOUNDS).promote
    assert len(decide(CHAMPION, CHAMPION, beyond, replace(beyond, separable=0.4, metadata=0.02), BOUNDS).reasons) == 2


def test_models_judged_on_other_rows_are_not_compared() -> None:
    rows = np.arange(len(CHAMPION.table)) % 2 == 0
    with pytest.raises(ValueError, match="same rows"):
        decide(CHAMPION, CHAMPION.rows(rows), FACTS, FACTS, BOUNDS)


def test_an_unknown_bound_is_named() -> None:
    with pytest.raises(ValueError, match="slowr"):
        bounds_from({"slowr": 1.0})


def test_the_golden_set_is_what_its_table_says(tmp_path) -> None:
    golden = read_golden([SHARED, tmp_path])
    assert {each.label for each in golden} == {"real", "ai"}
    assert len({each.name for each in golden}) == len(golden) >= 10
    table = (SHARED / "golden.csv").read_text()
    assert set(EDITS) >= {line.split(",")[4] for line in table.splitlines()[1:]}
    (tmp_path / "golden.csv").write_text(table.replace("8378", "0000"))
    with pytest.raises(TableError, match="another file"):
        read_golden([tmp_path])
