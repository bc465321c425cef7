"""The registry of releases: python -m lifecycle.registry list | show NAME | promote NAME | rollback

MLflow holds what is known of each release (parameters, metrics with their intervals, the card, plots) as a version of
the registered model ``img_ml_verify``; the release's files lie in a store beside it. ``promote`` publishes a release to
the store of IMGV_RELEASE and then moves that store's pointer, which is all that worker and API read: they take it over
within IMGV_RELEASE_REFRESH_SECONDS. The alias ``champion`` follows the pointer, ``challenger`` is the newest release
that was not promoted. Without IMGV_RELEASE the registry's own store is the published one. IMGV_WANDB_PROJECT shows
every registered release on Weights & Biases too.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from utils.contracts import Json
from utils.errors import BadSettings, ReleaseUnusable
from utils.exits import Exit, command, command_parser
from utils.releases import POINTER, Pointer, Release, Store, store_at
from utils.settings import Settings, load_settings

if TYPE_CHECKING:  # takes seconds to import
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODEL = "img_ml_verify"
CHAMPION, CHALLENGER = "champion", "challenger"
_RELEASE, _DECISION = "release", "decision"  # tags of a version


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered release."""

    version: int
    release: str
    run: str  # MLflow's id of what is known of it
    decision: str  # of the gate; empty: nobody asked it
    aliases: tuple[str, ...]


class Registry:
    """Releases by name, and which of them judges.

    Args:
        settings: where MLflow and the published store are.
    """

    def __init__(self, settings: Settings) -> None:
        folder = settings.lifecycle.folder
        self.releases = Store(folder / "releases")
        self.published = store_at(settings.models.release) if settings.models.release else self.releases
        self._wandb_project = settings.lifecycle.wandb_project
        self._uri = settings.lifecycle.tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._artifacts = (folder / "artifacts").absolute().as_uri()
        folder.mkdir(parents=True, exist_ok=True)
        self._opened: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._opened is None:
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            logging.getLogger("alembic").setLevel(logging.WARNING)
            self._opened = MlflowClient(self._uri, self._uri)
            try:
                self._opened.create_registered_model(MODEL)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        return self._opened

    # -------------------------------------------------------------------------------------------------------- looking

    def entries(self) -> list[Entry]:
        """Every registered release, oldest first."""
        aliases: dict[str, list[str]] = {}
        for alias, version in self._client.get_registered_model(MODEL).aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        found = self._client.search_model_versions(f"name='{MODEL}'")
        return sorted((_entry(each, aliases) for each in found), key=lambda entry: entry.version)

    def entry(self, release: str) -> Entry | None:
        return next((each for each in self.entries() if each.release == release), None)

    def champion(self) -> Release | None:
        """The release that judges; None before the first promotion."""
        return self.published.current() if self.published.judging() else None

    def known(self, release: str) -> dict[str, Json]:
        """Parameters and metrics of a release.

        Raises:
            ReleaseUnusable: it is not registered.
        """
        entry = self._registered(release)
        run = self._client.get_run(entry.run)
        return {
            "release": release,
            "version": entry.version,
            "decision": entry.decision,
            "aliases": list(entry.aliases),
            "folder": str(self.releases.folder / release),
            "parameters": dict(run.data.params),
            "metrics": dict(sorted(run.data.metrics.items())),
        }

    def _registered(self, release: str) -> Entry:
        if (entry := self.entry(release)) is None:
            names = ", ".join(each.release for each in self.entries()) or "none yet"
            raise ReleaseUnusable(f"no release {release!r} is registered; there are: {names}")
        return entry

    # ------------------------------------------------------------------------------------------------------- changing

    def register(
        self, release: Release, parameters: Mapping[str, Json], metrics: Mapping[str, float], files: Path | None = None
    ) -> Entry:
        """Make a release known; what is there already stays as it is, so a run that was killed may ask again.

        Args:
            metrics: by name; dots part what they are of.
            files: a folder of what is for people: the card, plots, reports.
        """
        self.releases.publish(release)
        if entry := self.entry(release.name):
            return entry
        client = self._client
        experiment = client.get_experiment_by_name(MODEL)
        number = experiment.experiment_id if experiment else client.create_experiment(MODEL, self._artifacts)
        unfinished = client.search_runs([number], f"tags.{_RELEASE} = '{release.name}'")
        run = unfinished[0] if unfinished else client.create_run(number, tags={_RELEASE: release.name})
        for name, value in parameters.items():
            client.log_param(run.info.run_id, name, value)
        for name, metric in metrics.items():
            client.log_metric(run.info.run_id, name, metric)
        if files is not None:
            client.log_artifacts(run.info.run_id, str(files))
        client.set_terminated(run.info.run_id)
        version = client.create_model_version(
            MODEL, str(self.releases.folder / release.name), run.info.run_id, tags={_RELEASE: release.name}
        )
        client.set_registered_model_alias(MODEL, CHALLENGER, version.version)
        if self._wandb_project:
            _show_on_wandb(self._wandb_project, self.releases.folder.parent, release.name, parameters, metrics, files)
        return self._registered(release.name)

    def decide(self, release: str, decision: str) -> None:
        """Note what the gate said of a release."""
        self._client.set_model_version_tag(MODEL, str(self._registered(release).version), _DECISION, decision)

    def promote(self, release: str) -> Pointer:
        """Publish a registered release and judge with it from now on.

        Raises:
            ReleaseUnusable: it is not registered, or its files are not as they were.
        """
        entry = self._registered(release)
        self.published.publish(self.releases.open(release))
        pointer = self.published.promote(release)
        self._crown(entry)
        return pointer

    def rollback(self) -> Pointer:
        """Judge with the release before again.

        Raises:
            ReleaseUnusable: there is none.
        """
        pointer = self.published.rollback()
        if entry := self.entry(pointer.release):
            self._crown(entry)
        return pointer

    def _crown(self, entry: Entry) -> None:
        self._client.set_registered_model_alias(MODEL, CHAMPION, str(entry.version))
        if CHALLENGER in entry.aliases:
            self._client.delete_registered_model_alias(MODEL, CHALLENGER)


def _show_on_wandb(
    project: str,
    folder: Path,
    release: str,
    parameters: Mapping[str, Json],
    metrics: Mapping[str, float],
    files: Path | None,
) -> None:
    """The same on Weights & Biases, by its own account and variables (WANDB_MODE=offline keeps it in the folder).

    Raises:
        BadSettings: it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise BadSettings("IMGV_WANDB_PROJECT needs Weights & Biases: pip install wandb") from error
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True)
    with wandb.init(
        project=project,
        name=release,
        id=release,
        resume="allow",
        dir=str(folder),
        config=dict(parameters),
        settings=settings,
    ) as run:
        run.summary.update(dict(metrics))
        if files is not None:
            card = wandb.Artifact(f"card-{release}", "card")
            card.add_dir(str(files))
            run.log_artifact(card)


def _entry(version: ModelVersion, aliases: Mapping[str, Sequence[str]]) -> Entry:
    tags, number = version.tags, str(version.version)
    return Entry(
        int(number),
        tags[_RELEASE],
        version.run_id or "",
        tags.get(_DECISION, ""),
        tuple(sorted(aliases.get(number, ()))),
    )


@command
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    registry = Registry(load_settings())
    match arguments.command:
        case "list":
            for entry in registry.entries():
                aliases = f"  [{', '.join(entry.aliases)}]" if entry.aliases else ""
                print(f"{entry.version:>3}  {entry.release}  {entry.decision or 'not judged'}{aliases}")
        case "show":
            print(json.dumps(registry.known(arguments.release), indent=1))
        case "promote":
            _tell(registry.promote(arguments.release), registry)
        case "rollback":
            _tell(registry.rollback(), registry)
    return Exit.DONE


def _tell(pointer: Pointer, registry: Registry) -> None:
    before = f"; before it {pointer.previous[0]}, which `rollback` returns to" if pointer.previous else ""
    print(f"{registry.published.address}/{POINTER} names {pointer.release}{before}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("python -m lifecycle.registry", __doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every registered release, oldest first")
    commands.add_parser("show", help="parameters and metrics of one").add_argument("release")
    promote = commands.add_parser("promote", help="publish one, whatever the gate said, and judge with it")
    promote.add_argument("release")
    commands.add_parser("rollback", help="judge with the one before again")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
