"""Every setting and its default, read once from the environment and .env, then passed down as plain arguments."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeVar

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from utils.errors import BadSettings
from utils.profiles import DEFAULT_PROFILE, PROFILES

T = TypeVar("T")

PREFIX, ENV_FILE = "IMGV_", ".env"
LARGEST = 2**40  # of any number: C's integers and clocks overflow beyond, far from the setting that is to blame


class Settings(BaseSettings):
    """Environment variables carry the prefix IMGV_, e.g. IMGV_MAX_BYTES=50000000."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=ENV_FILE,
        env_ignore_empty=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        validate_default=True,
        populate_by_name=True,
    )

    profile: str = Field(DEFAULT_PROFILE, description=f"which detectors run: {' | '.join(PROFILES)}")
    detectors: str = Field("", description="further detectors to switch on, comma separated")
    fusion: str = Field(
        "", description="fusion artifact: a folder, or its name in models/saved_models; empty: the profile's"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="label is AI from this probability; empty: the artifact's"
    )
    weights_dir: Path = Field(Path("~/.cache/img_ml_verify"), description="where downloaded weights live")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the networks; bfloat16 halves memory")
    threads: int = Field(0, ge=0, description="threads that measure images; 0: one per core")
    c2pa_trust_anchors: Path | None = Field(
        None, description="PEM file of trusted C2PA authorities; empty: none is trusted"
    )
    log_level: str = Field("WARNING", description="DEBUG, INFO, WARNING, ERROR")

    max_bytes: int = Field(64 * 2**20, gt=0, description="largest file we read or download, in bytes")
    max_pixels: int = Field(128_000_000, gt=0, description="largest width x height; known before decoding")
    max_frames: int = Field(8, gt=0, description="frames of an animation that are looked at")
    max_animation_pixels: int = Field(
        256_000_000, gt=0, description="width x height x frames that may be decoded to reach the sampled frames"
    )
    decode_in_child: bool = Field(False, description="decode in a child process with the two limits below")
    decode_memory_mb: int = Field(2048, gt=0, description="address space of the decoding child, in MiB")
    decode_seconds: float = Field(20.0, gt=0, description="wall time for decoding one image in the child, in seconds")

    fetch_seconds: float = Field(20.0, gt=0, description="total time for one download, redirects included")
    fetch_connect_seconds: float = Field(5.0, gt=0, description="time to connect")
    fetch_redirects: int = Field(3, ge=0, description="redirects followed; each is checked again")
    fetch_ports: str = Field("80,443", pattern=r"^\d+(,\d+)*$", description="ports we connect to, comma separated")

    redis_url: SecretStr = Field(
        SecretStr(""),
        validation_alias=AliasChoices("IMGV_REDIS_URL", "REDIS_URL"),  # REDIS_URL is what platforms set
        description="the queue's server, also read from REDIS_URL; empty: the one that --embedded starts",
    )
    queue_prefix: str = Field(
        "image_verify", pattern=r"^\S{1,100}$", description="start of every key; for Redis Cluster: {image_verify}"
    )
    queue_lease_seconds: float = Field(30.0, gt=0, description="a job not renewed for this long goes to another worker")
    queue_attempts: int = Field(4, ge=2, description="how often a job is tried before it is dead-lettered")
    queue_retry_seconds: float = Field(2.0, gt=0, description="first retry delay at most; it doubles, with full jitter")
    queue_max_waiting: int = Field(100_000, gt=0, description="producers refuse to add a job when this many wait")
    queue_max_jobs: int = Field(64, gt=0, description="jobs one worker holds at a time")
    queue_max_mb: int = Field(512, gt=0, description="image bytes, and pixels, that one worker holds at a time, in MiB")
    queue_batch: int = Field(8, gt=0, description="images judged together")
    queue_decoders: int = Field(2, gt=0, description="images decoded at the same time, each in a process of its own")
    queue_stuck_seconds: float = Field(
        300.0, gt=0, description="a worker whose models take longer for a batch ends itself"
    )
    queue_drain_seconds: float = Field(25.0, ge=0, description="after SIGTERM, time to finish what the models work on")
    queue_answer_seconds: int = Field(86_400, gt=0, description="how long an answer is kept by its job id")
    queue_results_kept: int = Field(100_000, gt=0, description="about how many answers the results stream keeps")
    queue_cache_seconds: int = Field(0, ge=0, description="answer the same bytes again from a cache this old; 0: never")
    queue_profiles: str = Field("", description="further profiles that jobs may name, comma separated; each is loaded")
    queue_paths: str = Field("", description="folders whose files jobs may name by path, colon separated; empty: none")
    queue_artifacts_dir: str = Field("", description="where jobs that ask for artifacts get them; empty: refused")
    queue_metrics: str = Field(
        "", pattern=r"^$|^\S*:\d+$", description="host:port for /metrics, /healthz and /readyz; empty: off"
    )
    queue_embedded_dir: Path = Field(
        Path("~/.cache/img_ml_verify/queue"), description="data and socket of the server that --embedded starts"
    )
    callback_secret: SecretStr = Field(
        SecretStr(""),
        description="signs callbacks: whsec_ and base64, as in Standard Webhooks; empty: callbacks refused",
    )
    callback_attempts: int = Field(8, ge=2, description="how often a callback is tried before it is dead-lettered")
    log_json: bool = Field(False, description="the worker's log as one JSON object per line")

    api_host: str = Field("127.0.0.1", description="address the HTTP server listens on; 0.0.0.0 for all")
    api_port: int = Field(8000, ge=0, le=65535, description="port the HTTP server listens on; 0: any free one")
    api_keys: str = Field(
        "",
        pattern=r"^([\w.-]+=[0-9a-f]{64}(,|$))*$",
        description="who may call: name=sha256 of a key, comma separated; python -m api --new-key NAME; empty: all",
    )
    api_rate_per_minute: int = Field(600, gt=0, description="images one key, or one address without keys, may send")
    api_wait_seconds: float = Field(30.0, gt=0, description="how long a request waits for its verdict by default")
    api_upload_seconds: float = Field(60.0, gt=0, description="time to receive one request's body")
    api_batch_images: int = Field(100, gt=0, description="images in one batch request")
    api_batch_mb: int = Field(256, gt=0, description="body of one batch request, in MiB")
    api_keep_seconds: float = Field(3600.0, gt=0, description="how long answers and their artifacts can be fetched")
    api_hosts: str = Field(
        "", description="names this server answers to, comma separated; empty: on loopback localhost, else any"
    )
    api_origins: str = Field("", description="other sites whose pages may call (CORS), comma separated; empty: none")
    api_proxies: str = Field("", description="reverse proxies whose X-Forwarded-* is believed, comma separated")

    @field_validator("weights_dir", "queue_embedded_dir", "c2pa_trust_anchors")
    @classmethod
    def _expand_home(cls, path: Path | None) -> Path | None:
        return path and path.expanduser()

    @field_validator("profile")
    @classmethod
    def _is_a_profile(cls, name: str) -> str:
        if name not in PROFILES:
            raise ValueError(f"no profile {name!r}; there are {' and '.join(PROFILES)}")
        return name

    @field_validator("*")
    @classmethod
    def _not_too_large(cls, value: T) -> T:
        if isinstance(value, int | float) and value > LARGEST:
            raise ValueError(f"at most {LARGEST}")
        return value

    @field_validator("fetch_ports")
    @classmethod
    def _are_ports(cls, ports: str) -> str:
        if not all(0 < int(port) < 2**16 for port in ports.split(",")):
            raise ValueError("ports are 1 to 65535")
        return ports

    @property
    def fetch_port_set(self) -> frozenset[int]:
        return frozenset(int(port) for port in self.fetch_ports.split(","))


def load_settings(**given: object) -> Settings:
    """Read the environment and .env; what the command line gave comes first.

    Raises:
        BadSettings: a value is out of range or not understood, or there is no such setting; the message names it.
    """
    _refuse_unknown()
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks them
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise BadSettings(f"{name}: {first['msg']}; see .env.example") from error


def _refuse_unknown() -> None:
    """A variable with our prefix that is no setting: mistyped, it would be without effect and nobody would know."""
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in sorted({*os.environ, *dotenv_values(ENV_FILE)}):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = get_close_matches(name.upper(), known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadSettings(f"{name}: there is no such setting; {hint}see .env.example")
