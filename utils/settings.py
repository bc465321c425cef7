"""Every setting and its default, read once from the environment and .env; each part is given its own section.

A setting is named as its variable, without IMGV_ and in lower case: ``load_settings(max_bytes=…)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_type_hints

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasGenerator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from utils.errors import BadSettings
from utils.older_names import from_older
from utils.profiles import DEFAULT_PROFILE, PROFILES

T = TypeVar("T")

PREFIX = "IMGV_"
# The program's own, not that of the folder it is called in: whoever packed that folder would choose our settings.
ENV_FILE = Path(__file__).resolve().parents[1] / ".env"
LARGEST = 2**40  # of any number: C's integers overflow beyond, far from the setting that is to blame
LONGEST_SECONDS = 10**9  # likewise: a thread waits for 292 years at most
LONGEST_PATH, LONGEST_NAME = 4000, 255
LONGEST_MESSAGE = 300  # characters of a refusal, which may repeat what was given


# ---------------------------------------------------------------------------------------------------------------- types


def _split(at: str) -> BeforeValidator:
    """A delimited string, as a variable holds it, to its parts; spaces around them and empty ones do not count."""

    def parts(given: object) -> object:
        return tuple(filter(None, map(str.strip, given.split(at)))) if isinstance(given, str) else given

    return BeforeValidator(parts)


def _keys(given: object) -> object:
    """``name=sha256,…`` to hashes by their names."""
    if not isinstance(given, str):
        return given
    if not re.fullmatch(r"([\w.-]+=[0-9a-f]{64}(,|$))*", given):
        raise ValueError("give name=sha256 of a key, comma separated; python -m api --new-key NAME prints one")
    return dict(entry.split("=", 1) for entry in given.split(",") if entry)


def _is_a_profile(name: str) -> str:
    if name not in PROFILES:
        raise ValueError(f"no profile {name!r}; there are {' and '.join(PROFILES)}")
    return name


def _name_of_a_file(text: str) -> str:
    """Not longer than file systems take: asking for it would raise far from the setting that is to blame."""
    if len(text) > LONGEST_PATH or any(len(part.encode("utf-8", "replace")) > LONGEST_NAME for part in text.split("/")):
        raise ValueError(f"a path has at most {LONGEST_PATH} characters, and {LONGEST_NAME} bytes between slashes")
    return text


def _from_home(path: Path) -> Path:
    """``~`` and ``~user`` expanded."""
    _name_of_a_file(str(path))
    try:
        return path.expanduser()
    except RuntimeError as error:  # no such user
        raise ValueError(f"{path}: {error}") from None


def _none_if_empty(given: object) -> object:
    return None if given == "" else given


Words = Annotated[tuple[str, ...], _split(",")]
Sites = Annotated[tuple[Annotated[str, AfterValidator(lambda site: site.rstrip("/"))], ...], _split(",")]
Ports = Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1), _split(",")]
Home = Annotated[Path, AfterValidator(_from_home)]  # a path that may begin with ~
Folders = Annotated[tuple[Home, ...], _split(":")]
Keys = Annotated[Mapping[str, str], BeforeValidator(_keys)]
Profile = Annotated[str, AfterValidator(_is_a_profile)]
Profiles = Annotated[tuple[Profile, ...], _split(",")]


# ------------------------------------------------------------------------------------------------------------- sections


def _variables(named: Callable[[str], str | AliasChoices]) -> ConfigDict:
    """The configuration of a section whose fields have the variables that ``named`` says, without IMGV_."""
    return ConfigDict(
        alias_generator=AliasGenerator(validation_alias=named),
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        validate_default=True,
        populate_by_name=True,
        protected_namespaces=(),
    )


def _either(name: str, unprefixed: str = "") -> AliasChoices:
    """Its variable with our prefix comes before the one in capitals without: what platforms and other tools set."""
    return AliasChoices(name, unprefixed or name.upper())


class Section(BaseModel):
    model_config = _variables(lambda field: field)

    @field_validator("*")
    @classmethod
    def _not_too_large(cls, value: T, field: ValidationInfo) -> T:
        most = LONGEST_SECONDS if str(field.field_name).endswith("seconds") else LARGEST
        if isinstance(value, int | float) and value > most:
            raise ValueError(f"at most {most}")
        return value


class ModelSettings(Section):
    profile: Profile = Field(DEFAULT_PROFILE, description=f"which detectors run: {' | '.join(PROFILES)}")
    detectors: Words = Field(
        (), description="further detectors to switch on, comma separated; -name switches one of the profile off"
    )
    fusion: Annotated[str, AfterValidator(_name_of_a_file)] = Field(
        "", description="fusion artifact: a folder, or its name in models/saved_models; empty: the profile's"
    )
    release: str = Field(
        "",
        description="store of promoted releases, a folder or s3://BUCKET/PREFIX: its pointer names the models to judge"
        " with; empty: none",
    )
    release_refresh_seconds: float = Field(
        30.0, gt=0, description="how often worker and API look whether another release was promoted"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="label is AI from this probability; empty: the artifact's"
    )
    stability: bool = Field(
        False, description="judge every image again as delivered otherwise; a label that flips gets no tier"
    )
    embedding: bool = Field(
        False, description="verdicts carry 64 numbers of what an image shows, for lifecycle.drift to compare"
    )
    weights_dir: Home = Field(Path("~/.cache/img_ml_verify"), description="where downloaded weights live")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the networks; bfloat16 halves memory")
    threads: int = Field(0, ge=0, le=1024, description="threads that measure images; 0: one per core")
    c2pa_trust_anchors: Home | None = Field(
        None, description="PEM file of trusted C2PA authorities; empty: none is trusted"
    )


class LogSettings(Section):
    level: str = Field("WARNING", alias="log_level", description="DEBUG, INFO, WARNING, ERROR")
    as_json: bool = Field(False, alias="log_json", description="log of worker and API as one JSON object per line")
    metrics_seconds: float = Field(
        0.0,
        ge=0,
        alias="metrics_seconds",
        description="how often worker, training and drift print numbers as CloudWatch's embedded metrics; 0: never",
    )


class DecodeSettings(Section):
    max_bytes: int = Field(64 * 2**20, gt=0, description="largest file we read or download, in bytes")
    max_pixels: int = Field(128_000_000, gt=0, description="largest width x height; known before decoding")
    max_frames: int = Field(8, gt=0, description="frames of an animation that are looked at")
    max_animation_pixels: int = Field(
        256_000_000, gt=0, description="width x height x frames that may be decoded to reach the sampled frames"
    )
    in_child: bool = Field(
        False, alias="decode_in_child", description="decode in a child process with the two limits below"
    )
    memory_mb: int = Field(
        2048, gt=0, alias="decode_memory_mb", description="address space of the decoding child, in MiB"
    )
    seconds: float = Field(
        20.0, gt=0, alias="decode_seconds", description="wall time for decoding one image in the child, in seconds"
    )

    def for_strangers(self) -> Self:
        """In a child unless the settings say otherwise: of worker and API, whose images strangers choose."""
        return self if "in_child" in self.model_fields_set else self.model_copy(update={"in_child": True})


class FetchSettings(Section):
    model_config = _variables(lambda field: f"fetch_{field}")

    seconds: float = Field(20.0, gt=0, description="total time for one download, redirects included")
    connect_seconds: float = Field(5.0, gt=0, description="time to connect")
    redirects: int = Field(3, ge=0, description="redirects followed; each is checked again")
    ports: Ports = Field((80, 443), description="ports we connect to, comma separated")
    at_once: int = Field(16, gt=0, description="downloads at a time; each may hold IMGV_MAX_BYTES")
    per_caller: int = Field(
        4, gt=0, description="of these, for one caller; in a worker, for one host unless jobs name it"
    )


class PipelineSettings(Section):
    """What worker and API share. Until 2026-12 they were the queue's, and their old names still work."""

    model_config = _variables(lambda field: AliasChoices(f"pipeline_{field}", f"queue_{field}"))

    max_jobs: int = Field(64, gt=0, description="images that one worker or API holds at a time")
    max_mb: int = Field(512, gt=0, description="bytes of files and pixels that it holds at a time, in MiB")
    batch: int = Field(8, gt=0, description="images judged together")
    decoders: int = Field(2, gt=0, le=256, description="images decoded at the same time, each in a process of its own")
    stuck_seconds: float = Field(
        300.0, gt=0, description="models that take longer for a batch are stuck: the worker ends, the API is unready"
    )
    drain_seconds: float = Field(25.0, ge=0, description="after SIGTERM, time to finish what the models work on")
    cache: Annotated[Home | None, BeforeValidator(_none_if_empty)] = Field(
        None,
        validation_alias=AliasChoices("pipeline_cache"),  # it never was the queue's
        description="file of verdicts, on this machine's disk, from which command line and API answer the same bytes"
        " again; empty: none. A worker has IMGV_QUEUE_CACHE_SECONDS",
    )


class QueueSettings(Section):
    model_config = _variables(lambda field: f"queue_{field}")

    redis_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=_either("redis_url"),
        description="the queue's server, also read from REDIS_URL; empty: the one that --embedded starts",
    )
    prefix: str = Field(
        "image_verify", pattern=r"^\S{1,100}$", description="start of every key; for Redis Cluster: {image_verify}"
    )
    lease_seconds: float = Field(30.0, ge=0.1, description="a job not renewed for this long goes to another worker")
    attempts: int = Field(4, ge=2, description="how often a job is tried before it is dead-lettered")
    retry_seconds: float = Field(2.0, gt=0, description="first retry delay at most; it doubles, with full jitter")
    max_waiting: int = Field(100_000, gt=0, description="producers refuse to add a job when this many wait")
    answer_seconds: int = Field(86_400, gt=0, description="how long an answer is kept by its job id")
    results_kept: int = Field(100_000, gt=0, description="about how many answers the results stream keeps")
    cache_seconds: int = Field(0, ge=0, description="answer the same bytes again from a cache this old; 0: never")
    profiles: Profiles = Field((), description="further profiles that jobs may name, comma separated; each is loaded")
    paths: Folders = Field((), description="folders whose files jobs may name by path, colon separated; empty: none")
    artifacts_dir: Annotated[Home | None, BeforeValidator(_none_if_empty)] = Field(
        None, description="where jobs that ask for artifacts get them; empty: refused"
    )
    metrics: str = Field(
        "", pattern=r"^$|^\S*:\d+$", description="host:port for /metrics, /healthz and /readyz; empty: off"
    )
    embedded_dir: Home = Field(
        Path("~/.cache/img_ml_verify/queue"), description="data and socket of the server that --embedded starts"
    )
    callback_secret: SecretStr = Field(
        SecretStr(""),
        alias="callback_secret",
        description="signs callbacks: whsec_ and base64, as in Standard Webhooks; empty: callbacks refused",
    )
    callback_attempts: int = Field(
        8, ge=2, alias="callback_attempts", description="how often a callback is tried before it is dead-lettered"
    )


class ApiSettings(Section):
    model_config = _variables(lambda field: f"api_{field}")

    host: str = Field("127.0.0.1", max_length=255, description="address the HTTP server listens on; 0.0.0.0 for all")
    port: int = Field(8000, ge=0, le=65535, description="port the HTTP server listens on; 0: any free one")
    keys: Keys = Field(
        {}, description="who may call: name=sha256 of a key, comma separated; python -m api --new-key NAME; empty: all"
    )
    admins: Words = Field(
        (), description="names of keys that may change settings at run time (/v1/config), comma separated; empty: none"
    )
    rate_per_minute: int = Field(600, gt=0, description="images one key, or one address without keys, may send")
    wait_seconds: float = Field(30.0, gt=0, description="how long a request waits for its verdict by default")
    upload_seconds: float = Field(60.0, gt=0, description="time to receive one request's body")
    batch_images: int = Field(100, gt=0, description="images in one batch request")
    batch_mb: int = Field(256, gt=0, description="body of one batch request, in MiB")
    keep_seconds: float = Field(3600.0, gt=0, description="how long answers and their artifacts can be fetched")
    hosts: Words = Field(
        (), description="names this server answers to, comma separated; empty: on loopback localhost, else any"
    )
    origins: Sites = Field((), description="other sites whose pages may call (CORS), comma separated; empty: none")
    proxies: Words = Field((), description="reverse proxies whose X-Forwarded-* is believed, comma separated")
    feedback_dir: Annotated[Home | None, BeforeValidator(_none_if_empty)] = Field(
        None, alias="feedback_dir", description="where POST /v1/feedback keeps what callers report; empty: refused"
    )
    feedback_images: bool = Field(
        False, alias="feedback_images", description="also keep the images that are sent with reports, for review"
    )
    feedback_days: float = Field(
        90.0, gt=0, alias="feedback_days", description="how long reports and their images are kept"
    )

    @field_validator("admins")
    @classmethod
    def _admins_have_keys(cls, value: tuple[str, ...], field: ValidationInfo) -> tuple[str, ...]:
        """Else an address, which is what callers without keys are called, could be given the right."""
        if unknown := [name for name in value if name not in field.data.get("keys", {})]:
            raise ValueError(f"IMGV_API_KEYS has no key of the name {unknown[0][:50]!r}")
        return value


class LifecycleSettings(Section):
    """Of the commands in lifecycle/; no verdict reads them."""

    folder: Home = Field(
        Path("~/.cache/img_ml_verify/lifecycle"),
        alias="lifecycle_dir",
        description="runs, the registry and its releases, images kept for review, and the scheduler's state",
    )
    tracking_uri: str = Field(
        "",
        validation_alias=_either("tracking_uri", "MLFLOW_TRACKING_URI"),
        description="MLflow, also read from MLFLOW_TRACKING_URI; empty: SQLite in the folder above",
    )
    wandb_project: str = Field(
        "",
        alias="wandb_project",
        description="also show every registered release in this project of Weights & Biases; empty: do not",
    )
    min_images: int = Field(
        50,
        gt=0,
        validation_alias=_either("min_images_per_class"),
        description="fewest images of each label that are trained on; MIN_IMAGES_PER_CLASS is understood too",
    )
    min_sources: int = Field(
        3,
        gt=0,
        validation_alias=_either("min_sources_per_class"),
        description="fewest sources of each label that are trained on; MIN_SOURCES_PER_CLASS is understood too",
    )
    frequency: Literal["daily", "weekly"] = Field(
        "weekly",
        validation_alias=_either("training_frequency"),
        description="daily or weekly retraining; TRAINING_FREQUENCY is understood too",
    )
    time: str = Field(
        "03:00",
        pattern=r"^([01]\d|2[0-3]):[0-5]\d$",
        validation_alias=_either("training_time"),
        description="HH:MM at which it starts; TRAINING_TIME is understood too",
    )
    zone: str = Field(
        "UTC",
        validation_alias=_either("training_zone"),
        description="time zone of that time, such as Europe/Berlin; TRAINING_ZONE is understood too",
    )
    notify_url: str = Field(
        "",
        alias="notify_url",
        description="gets a POST, signed as callbacks are, of failed runs and drift; empty: none",
    )
    unsplash_key: SecretStr = Field(
        SecretStr(""),
        validation_alias=_either("unsplash_access_key"),
        description="access key for lifecycle.collect unsplash",
    )
    pexels_key: SecretStr = Field(
        SecretStr(""), validation_alias=_either("pexels_api_key"), description="API key for lifecycle.collect pexels"
    )
    flickr_key: SecretStr = Field(
        SecretStr(""), validation_alias=_either("flickr_api_key"), description="API key for lifecycle.collect flickr"
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """All sections. Who needs one thing takes its section, or the value itself."""

    models: ModelSettings
    log: LogSettings
    decode: DecodeSettings
    fetch: FetchSettings
    pipeline: PipelineSettings
    queue: QueueSettings
    api: ApiSettings
    lifecycle: LifecycleSettings

    @classmethod
    def of(cls, **given: object) -> Self:
        """The defaults, and what is given by its variable's name; nothing of the environment.

        Raises:
            ValidationError: a value is out of range or not understood.
        """
        return cls(**{name: section.model_validate(given) for name, section in sections().items()})  # type: ignore[arg-type]


def sections() -> dict[str, type[Section]]:
    hints = get_type_hints(Settings)
    return {field.name: hints[field.name] for field in fields(Settings)}


def variables() -> dict[str, FieldInfo]:
    """Every variable and its field, in the order of the sections."""
    return {_names_of(field)[0]: field for section in sections().values() for field in section.model_fields.values()}


def _aliases(field: FieldInfo) -> list[str]:
    alias = field.validation_alias
    return [str(name) for name in (alias.choices if isinstance(alias, AliasChoices) else [alias])]


def _names_of(field: FieldInfo) -> list[str]:
    """The variables with our prefix that set it: the one to use, then older ones."""
    return [PREFIX + name.upper() for name in _aliases(field) if not name.isupper()]


@cache
def unprefixed() -> frozenset[str]:
    """The variables without our prefix that are read."""
    return frozenset(name for field in variables().values() for name in _aliases(field) if name.isupper())


# -------------------------------------------------------------------------------------------------------------- reading


def load_settings(**given: object) -> Settings:
    """Read the environment and the .env beside the program; what the command line gave comes first.

    Raises:
        BadSettings: a value is out of range or not understood, or there is no such setting; the message names it.
    """
    try:
        file = dotenv_values(ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{ENV_FILE} cannot be read: {error}; mend or move it") from error
    _refuse_unknown({*file, *os.environ, *(PREFIX + name for name in given)})
    try:
        older = from_older({**file, **os.environ})
        return Settings.of(**older | _named(file) | _named(os.environ) | given)
    except ValidationError as error:
        first = error.errors()[0]
        text = f"{PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}"
        raise BadSettings(f"{text[:LONGEST_MESSAGE]}; see .env.example") from error


def _named(source: Mapping[str, str | None]) -> dict[str, Any]:
    """Its variables that are ours, without the prefix. An empty one is as good as none."""
    found: dict[str, Any] = {}
    for name, value in source.items():
        if value and name.upper().startswith(PREFIX):
            found[name[len(PREFIX) :].lower()] = value
        elif value and name.upper() in unprefixed():
            found[name.upper()] = value
    return found


def _refuse_unknown(names: set[str]) -> None:
    """A variable with our prefix that is no setting: mistyped, it would be without effect and nobody would know."""
    known = [
        name for section in sections().values() for field in section.model_fields.values() for name in _names_of(field)
    ]
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = get_close_matches(name.upper(), known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadSettings(f"{name}: there is no such setting; {hint}see .env.example")
