"""Costs: each price with its source, the arithmetic, and what AWS would tell."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle.cloud import costs
from lifecycle.cloud.costs import Known
from tests.clouds import point_to, refusing
from utils.errors import BadSettings, VerifyError
from utils.exits import Exit

ROOT = Path(__file__).parents[3]


def test_every_price_names_region_day_and_source():
    known = Known.read()
    kinds = {price.name.partition(".")[0].split()[0] for price in known.prices}
    assert {"g4dn", "g5", "p3", "c7i", "fargate", "ml"} <= kinds
    for price in known.prices:
        assert re.fullmatch(r"[a-z]+-[a-z]+-\d", price.region)
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", price.day)
        assert price.source.startswith(("https://", "Price List API"))
        assert price.hour > price.spot >= 0


def test_the_measured_rate_is_the_benchmarks():
    page = (ROOT / "docs" / "performance.md").read_text()
    worker, *_ = re.findall(r"^\| ours, worker \| ([\d.]+) \|", page, re.MULTILINE)  # the newest stands first
    assert "2 cores" in page
    assert Known.read().images_per_core_second == pytest.approx(float(worker) / 2, abs=0.01)


def test_a_million_verdicts_cost_what_the_arithmetic_says(capsys):
    known = Known.read()
    price = replace(known.prices[0], vcpus=4, hour=0.2, spot=0.05)
    known = replace(known, prices=(price,), images_per_core_second=2.5)
    assert known.verdict_hours(price) == pytest.approx(1_000_000 / 10 / 3600)
    on_demand, spot = costs.recommended(known)
    assert on_demand.endswith("= 27.8 h x $0.2000 = $5.56")
    assert spot.endswith("x $0.0500 = $1.39")
    assert costs.main([]) == Exit.DONE
    assert "a million verdicts on demand" in capsys.readouterr().out


def test_prices_are_refreshed_and_comments_stay(aws, tmp_path, monkeypatch):
    path = tmp_path / "prices.toml"
    shutil.copyfile(costs.PRICES, path)
    before = Known.read(path)
    offer = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": {"pricePerUnit": {"USD": "0.2142"}}}}}}}
    with refusing(200, json.dumps({"PriceList": [json.dumps(offer)]}), "application/x-amz-json-1.1") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL_PRICING", url)
        prices = costs.updated(before, "eu-central-1")
    costs.write(prices, path)
    after = Known.read(path)
    machines = [price for price in after.prices if price.service == "EC2"]
    assert {(price.hour, price.region, price.source) for price in machines} == {
        (0.2142, "eu-central-1", "Price List API")
    }
    others = [price for price in after.prices if price.service != "EC2"]
    assert others == [price for price in before.prices if price.service != "EC2"]
    assert after.images_per_core_second == before.images_per_core_second
    assert "[spot]\n# Where no spot price is known" in path.read_text()


def test_an_api_that_cannot_be_reached_changes_nothing(monkeypatch, tmp_path):
    point_to(monkeypatch, "http://127.0.0.1:9")
    text = costs.PRICES.read_text()
    assert costs.main(["--update"]) == Exit.FAILED
    assert costs.PRICES.read_text() == text


def test_what_was_spent_is_added_up_by_service(aws, capsys):
    group = {"Keys": ["AmazonECS"], "Metrics": {"UnblendedCost": {"Amount": "12.5", "Unit": "USD"}}}
    results = {"results": [{"ResultsByTime": [{"Groups": [group]}, {"Groups": [group]}]}]}
    url = f"{aws}/moto-api/static/ce/cost-and-usage-results"
    request = urllib.request.Request(url, json.dumps(results).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request):
        pass
    assert costs.main(["--spend", "--stack", "team"]) == Exit.DONE
    assert "25.00  AmazonECS" in capsys.readouterr().out


def test_a_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "prices.toml").write_text("[rates]\n")
    with pytest.raises(BadSettings, match="table of prices"):
        Known.read(tmp_path / "prices.toml")
    assert issubclass(BadSettings, VerifyError)
