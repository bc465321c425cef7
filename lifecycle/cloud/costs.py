"""What it costs: python -m lifecycle.cloud.costs [--update | --spend]

Prints what a million verdicts and a training cost on each machine of deploy/aws/prices.toml, on demand and spot, from
rates that were measured, with the arithmetic of the cheapest. A virtual CPU is counted as the core that was measured,
and a GPU as nothing, since no rate was measured on one: so costs on Intel's and AMD's machines, where a virtual CPU is
half a core, are lower bounds. --update asks AWS for the prices of EC2, --spend what was spent, by the stack's tag.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lifecycle.cloud.stack import NAME, PROJECT
from utils.aws import client, coded
from utils.errors import BadSettings, CloudFailed
from utils.exits import Exit, command, command_parser
from utils.persistence import write_atomic

PRICES = Path(__file__).parents[2] / "deploy" / "aws" / "prices.toml"
EC2 = "EC2"
MILLION = 1_000_000
_DAYS = 30


@dataclass(frozen=True, slots=True)
class Price:
    name: str
    service: str
    region: str
    vcpus: int
    gpus: int
    hour: float  # US dollars, on demand
    source: str
    day: str
    spot: float = 0.0  # 0: not known


@dataclass(frozen=True, slots=True)
class Known:
    """What prices.toml says."""

    prices: tuple[Price, ...]
    images_per_core_second: float
    training_core_hours: float
    assumed_spot_share: float

    @classmethod
    def read(cls, path: Path = PRICES) -> Known:
        """
        Raises:
            BadSettings: the file is not as we write it.
        """
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
            prices = tuple(Price(**each) for each in said["price"])
            rates = said["rates"]
            return cls(
                prices, rates["images_per_core_second"], rates["training_core_hours"], said["spot"]["assumed_share"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadSettings(f"{path} cannot be used as a table of prices: {error!r}") from error

    def spot(self, price: Price) -> float:
        """Of an hour; assumed where it is not known."""
        return price.spot or price.hour * self.assumed_spot_share

    def verdict_hours(self, price: Price) -> float:
        """Of a million verdicts."""
        return MILLION / (self.images_per_core_second * price.vcpus) / 3600

    def training_hours(self, price: Price) -> float:
        return self.training_core_hours / price.vcpus


def table(known: Known) -> Table:
    columns = (
        "machine",
        "vCPUs",
        "an hour",
        "spot",
        "a million verdicts",
        "spot",
        "a training",
        "spot",
        "price of, from",
    )
    shown = Table(*columns, title="US dollars; ~ assumes the spot price")
    for price in known.prices:
        spot, mark = known.spot(price), "" if price.spot else "~"
        row = [price.name, str(price.vcpus), f"{price.hour:.4f}", f"{mark}{spot:.4f}"]
        for hours in (known.verdict_hours(price), known.training_hours(price)):
            row += [f"{hours * price.hour:.2f}", f"{mark}{hours * spot:.2f}"]
        shown.add_row(*row, f"{price.day}, {price.region}: {price.source}")
    return shown


def recommended(known: Known) -> list[str]:
    """The cheapest for a million verdicts, with the arithmetic."""
    judging = [price for price in known.prices if price.service != "SageMaker"]
    lines = []
    for how, hourly in (("on demand", lambda price: price.hour), ("spot", known.spot)):
        best = min(judging, key=lambda price: known.verdict_hours(price) * hourly(price))
        hours, rate = known.verdict_hours(best), f"{known.images_per_core_second} x {best.vcpus} a second"
        sum_ = f"1,000,000 / ({rate}) = {hours:.1f} h x ${hourly(best):.4f} = ${hours * hourly(best):.2f}"
        lines.append(f"a million verdicts {how}: {best.name}, {sum_}")
    return lines


# --- AWS


def updated(known: Known, region: str) -> list[Price]:
    """The prices, those of EC2 as AWS tells them now."""
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    found = []
    for price in known.prices:
        if price.service == EC2:
            hour = _on_demand(price.name, region)
            found.append(
                replace(
                    price, region=region, hour=hour, spot=_spot(price.name, region), day=today, source="Price List API"
                )
            )
        else:
            found.append(price)
    return found


def _on_demand(kind: str, region: str) -> float:
    wanted = {
        "instanceType": kind,
        "regionCode": region,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()]
    with coded("the Price List API"):  # it answers in few regions
        listed = client("pricing", region_name="us-east-1").get_products(ServiceCode="AmazonEC2", Filters=filters)
    for product in listed["PriceList"]:
        for term in json.loads(product)["terms"]["OnDemand"].values():
            for dimension in term["priceDimensions"].values():
                if price := float(dimension["pricePerUnit"].get("USD", 0)):
                    return price
    raise CloudFailed(f"the Price List API has no price of {kind} in {region}; name another --region")


def _spot(kind: str, region: str) -> float:
    """The lowest of the region's zones now; 0: AWS tells none."""
    with coded("spot prices"):
        history = client("ec2", region_name=region).describe_spot_price_history(
            InstanceTypes=[kind], ProductDescriptions=["Linux/UNIX"], StartTime=datetime.now(UTC)
        )["SpotPriceHistory"]
    return min((float(each["SpotPrice"]) for each in history), default=0.0)


def write(prices: Sequence[Price], path: Path = PRICES) -> None:
    """Put other prices below the comments, rates and assumptions of the file."""
    head = path.read_text(encoding="utf-8").partition("[[price]]")[0]
    blocks = []
    for price in prices:
        values = {name: value for name, value in asdict(price).items() if name != "spot" or value}
        # JSON's strings and numbers are also TOML's
        blocks.append(
            "\n".join(["[[price]]", *(f"{name} = {json.dumps(value)}" for name, value in values.items()), ""])
        )
    write_atomic(path, (head + "\n".join(blocks)).encode())


def spent(stack: str) -> Mapping[str, float]:
    """US dollars of the last thirty days, by service, of what carries the stack's tag."""
    end = datetime.now(UTC).date()
    with coded("Cost Explorer"):
        answer: dict[str, Any] = client("ce", region_name="us-east-1").get_cost_and_usage(
            TimePeriod={"Start": f"{end - timedelta(_DAYS)}", "End": f"{end}"},
            Granularity="MONTHLY",
            Metrics=["UnblendedCost"],
            Filter={"Tags": {"Key": PROJECT, "Values": [stack]}},
            GroupBy=[{"Type": "DIMENSION", "Key": "SERVICE"}],
        )
    found: dict[str, float] = {}
    for period in answer["ResultsByTime"]:
        for group in period.get("Groups", ()):
            service = group["Keys"][0]
            found[service] = found.get(service, 0.0) + float(group["Metrics"]["UnblendedCost"]["Amount"])
    return found


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    if arguments.spend:
        by_service = spent(arguments.stack)
        for service, amount in sorted(by_service.items(), key=lambda item: -item[1]):
            print(f"{amount:>10.2f}  {service}")
        print(f"{sum(by_service.values()):>10.2f}  in {_DAYS} days, of what is tagged {PROJECT}={arguments.stack}")
        return Exit.DONE
    known = Known.read()
    if arguments.update:
        write(updated(known, arguments.region))
        known = Known.read()
        print(f"wrote {PRICES}: prices of EC2 in {arguments.region}; the others are as they were")
    Console(width=200).print(table(known))
    print("\n".join(recommended(known)))
    return Exit.DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.cloud.costs", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--update", action="store_true", help="ask AWS for the prices of EC2, and write them down")
    which.add_argument("--spend", action="store_true", help="what the stack cost in the last thirty days")
    parser.add_argument("--region", default="us-east-1", help="of --update (default: %(default)s)")
    parser.add_argument("--stack", default=NAME, help="of --spend (default: %(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
