"""All settings, as data: name, default, unit, help. The only door to the environment.

A setting `data_dir` is read from `LOOKALIKE_DATA_DIR`; a secret `label_studio_token` also from the file that
`LOOKALIKE_LABEL_STUDIO_TOKEN_FILE` names. Nothing is read when this module is imported.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from lookalike.errors import SettingsError

PREFIX = "LOOKALIKE_"

#: ways to group keyframes, the default first
CLUSTERINGS = ("pca-kmeans", "kmeans", "minibatch", "ward", "hdbscan")


def variable(name: str) -> str:
    """What people set, and so what messages name: the environment variable of a setting."""
    return PREFIX + name.upper()


def _setting(
    default: Any,
    help: str,  # noqa: A002
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    meta = {"help": help, "unit": unit, "low": low, "high": high, "choices": choices, "secret": secret}
    return field(default=default, metadata=meta, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that a person may choose. Checked when made."""

    # where things are
    data_dir: Path = _setting(Path(".lookalike"), "folder for the ledger, keyframes, queue and logs")
    store_url: str = _setting("", "SQLAlchemy URL of the ledger; empty: a SQLite file in data_dir", secret=True)
    redis_url: str = _setting(
        "", "URL of a Redis or Valkey; empty: our own Valkey on a unix socket in data_dir", secret=True
    )

    # Label Studio
    label_studio_url: str = _setting("", "address of Label Studio as this machine reaches it")
    label_studio_token: str = _setting(
        "", "personal access token, or legacy token, of the account that we act as", secret=True
    )
    public_url: str = _setting("", "address of our page as annotators' browsers reach it; empty: the backend's own")
    poll_s: float = _setting(60.0, "how often annotations are read back, in case a webhook was lost", unit="s", low=1)

    # the backend
    host: str = _setting("127.0.0.1", "address that the backend binds to")
    port: int = _setting(9090, "port that the backend binds to", low=1, high=65535)
    connect_url: str = _setting("", "address of the backend as Label Studio reaches it; empty: http://host:port")
    basic_auth_user: str = _setting("", "user name that Label Studio must send; needed to bind beyond loopback")
    basic_auth_pass: str = _setting("", "password that Label Studio must send", secret=True)

    # media
    local_files_root: str = _setting("", "folder that /data/local-files URLs and paths may lie in; empty: none")
    trusted_hosts: str = _setting("", "hosts, comma-separated, that may have a private address")
    media_max_mb: float = _setting(20_000.0, "largest video that is fetched", unit="MB", low=0.001)
    media_timeout_s: float = _setting(3600.0, "longest time that fetching one video may take", unit="s", low=0.1)
    decode_timeout_s: float = _setting(3600.0, "longest time that decoding one video may take", unit="s", low=0.1)
    decode_memory_mb: float = _setting(3000.0, "address space that decoding one video may take", unit="MB", low=200)
    max_pixels: int = _setting(4096 * 2304, "largest picture size that is decoded", unit="pixels", low=1)
    max_duration_s: float = _setting(12 * 3600.0, "longest video that is decoded", unit="s", low=0.1)
    disk_free_mb: float = _setting(500.0, "free disk below which no new work starts", unit="MB", low=0)

    # keyframes
    keyframe_mode: str = _setting(
        "exact", "exact reads every frame, fast reads I-frames and more only where needed", choices=("exact", "fast")
    )
    keyframe_share: float = _setting(0.01, "share of the frames to keep, about", low=0.0001, high=1)
    keyframe_width_px: int = _setting(1280, "widest keyframe picture that is stored", unit="px", low=64)

    # embeddings and clusters
    embedder: str = _setting(
        "efficientnet-lite0",
        "model: efficientnet-lite0, a Hugging Face id with @revision and #pooling if need be, a folder, a function of "
        "yours, or a file of vectors; see docs/models.md",
    )
    device: str = _setting("auto", "where the model runs: auto, cpu, cuda, cuda:1, …")
    inference: str = _setting(
        "auto",
        "what runs the model on a CPU: torch, openvino, or auto, which is openvino where it is installed",
        choices=("auto", "torch", "openvino"),
    )
    batch_size: int = _setting(0, "pictures per batch; 0: found by itself", low=0)
    clustering: str = _setting(
        "pca-kmeans",
        "how keyframes are grouped: kmeans as in the article, minibatch for very many, ward leaves a tree, hdbscan "
        "leaves out what is like nothing else",
        choices=CLUSTERINGS,
    )
    clusters: int = _setting(0, "clusters per project; 0: proposed from the data", low=0)
    seed: int = _setting(0, "seed of everything random", low=0)

    # labels
    keyframes_project: str = _setting(
        "auto",
        "whether a project with video timelines gets a companion project of its keyframes, and one of pictures its own "
        "tabs: auto, or off (then only by lookalike keyframes)",
        choices=("auto", "off"),
    )
    promise: float = _setting(
        0.95, "share of the propagated labels that should be right; the rest stays open", low=0.5, high=0.999
    )

    # work
    workers: int = _setting(1, "video worker processes", low=1, high=256)
    max_attempts: int = _setting(3, "times in a row that work may stop its worker before it is set aside", low=1)
    max_tries: int = _setting(
        10, "tries to fetch a video, or to deliver to a Label Studio that refuses, before it is set aside", low=1
    )
    lease_s: float = _setting(60.0, "time after which a silent worker's video is given to another", unit="s", low=1)
    max_queue: int = _setting(100_000, "videos waiting above which /webhook answers 503", low=1)
    log_format: str = _setting("text", "how log lines look", choices=("text", "json"))

    def __post_init__(self) -> None:
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if meta["choices"] and value not in meta["choices"]:
                raise SettingsError(f"{variable(f.name)} must be one of {', '.join(meta['choices'])}, got {value!r}")
            low, high = meta["low"], meta["high"]
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                bounds = f"between {low:g} and {high:g}" if high is not None else f"at least {low:g}"
                raise SettingsError(f"{variable(f.name)} must be {bounds}, got {value}")
        if bool(self.basic_auth_user) != bool(self.basic_auth_pass):
            user, password = variable("basic_auth_user"), variable("basic_auth_pass")
            raise SettingsError(f"{user} and {password} go together: set both or none")
        if self.clusters and self.clustering == "hdbscan":
            raise SettingsError(
                f"{variable('clusters')} must be 0 with the clustering hdbscan, which finds their number itself, "
                f"got {self.clusters}"
            )
        for name in ("label_studio_url", "public_url", "connect_url"):
            url = getattr(self, name)
            if url and not url.startswith(("http://", "https://")):
                raise SettingsError(f"{variable(name)} must start with http:// or https://, got {url!r}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **overrides: Any) -> Self:
        """Settings from `LOOKALIKE_…` variables; `overrides` that are not None win over them.

        Raises SettingsError for a value that cannot be read and for an unknown `LOOKALIKE_…` variable.
        """
        environment = os.environ if environment is None else environment
        known = {f.name: f for f in fields(cls)}
        values: dict[str, Any] = {}
        for given, text in environment.items():
            if not given.startswith(PREFIX):
                continue
            name = given.removeprefix(PREFIX).lower()
            if name.endswith("_file") and known.get(name.removesuffix("_file")) is not None:
                name = name.removesuffix("_file")
                if not known[name].metadata["secret"]:
                    raise SettingsError(f"{given}: only secrets are read from a file; set {variable(name)}")
                try:
                    text = Path(text).read_text().strip()
                except OSError as error:
                    raise SettingsError(f"{given}: cannot read {text}: {error.strerror}") from None
            elif name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
                hint = (
                    f"is {variable(near[0])} meant?" if near else f"the settings are {', '.join(map(variable, known))}"
                )
                raise SettingsError(f"{given} is not a setting; {hint}")
            values[name] = _read(known[name].name, text, known[name].default)
        values |= {name: value for name, value in overrides.items() if value is not None}
        return cls(**values)

    def to_environment(self) -> dict[str, str]:
        """The variables that make a child process read these settings (secrets included: never log it)."""
        return {
            PREFIX + f.name.upper(): str(getattr(self, f.name))
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        }

    def or_demo(self) -> Self:
        """With the addresses and the token of the demo in data_dir, where no Label Studio is set."""
        path = self.data_dir / "login.json"
        if self.label_studio_url or not path.exists():
            return self
        try:
            demo = json.loads(path.read_text())
            return self.with_(label_studio_url=demo["url"], label_studio_token=demo["token"], port=demo["backend_port"])
        except (OSError, ValueError, KeyError) as error:
            raise SettingsError(f"the demo's login in {path} cannot be read: {error}") from None

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)

    @property
    def sqlalchemy_url(self) -> str:
        return self.store_url or f"sqlite:///{self.ledger_path.resolve()}"

    @property
    def ledger_path(self) -> Path:
        """Where the ledger lies, if it is SQLite's."""
        return self.data_dir / "ledger.sqlite3"

    @property
    def backend_url(self) -> str:
        return self.connect_url.rstrip("/") or f"http://{self.host}:{self.port}"

    @property
    def page_url(self) -> str:
        return self.public_url or self.backend_url

    @property
    def is_on_loopback(self) -> bool:
        """Whether the backend answers on this machine only."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def keyframes_dir(self) -> Path:
        return self.data_dir / "keyframes"

    def picture_folder(self, video_id: int) -> Path:
        """Where the pictures of a video's keyframes lie, on the machine that has worked on it."""
        return self.keyframes_dir / f"{video_id:09d}"

    def picture_path(self, video_id: int, frame_index: int) -> Path:
        """Where a keyframe's picture lies."""
        return self.picture_folder(video_id) / f"{frame_index:07d}.jpg"


def table() -> str:
    """All settings as a Markdown table, for the README; a secret is also read from the file that `…_FILE` names."""
    lines = ["| variable | default | unit | what it is |", "|---|---|---|---|"]
    for f in fields(Settings):
        meta, default = f.metadata, f"{f.default:g}" if isinstance(f.default, float) else str(f.default)
        notes = [f"one of {', '.join(meta['choices'])}"] if meta["choices"] else []
        notes += [f"at least {meta['low']:g}"] if meta["low"] is not None and meta["high"] is None else []
        notes += [f"{meta['low']:g} to {meta['high']:g}"] if meta["high"] is not None else []
        notes += ["secret"] if meta["secret"] else []
        text = meta["help"] + (f" ({'; '.join(notes)})" if notes else "")
        lines.append(f"| `{PREFIX}{f.name.upper()}` | {f'`{default}`' if default else ''} | {meta['unit']} | {text} |")
    return "\n".join(lines) + "\n"


def plain_environment() -> dict[str, str]:
    """This process's environment for programs that are not ours: without our settings and secrets.

    Label Studio reads bare HOST, PORT, DEBUG, … too, so these stay out as well.
    """
    stray = {"HOST", "PORT", "DEBUG", "USERNAME", "PASSWORD", "USER_TOKEN", "LOG_LEVEL"}
    prefixes = (PREFIX, "LABEL_STUDIO_", "HEARTEX_", "DJANGO_")
    return {k: v for k, v in os.environ.items() if k not in stray and not k.startswith(prefixes)}


def share_cores() -> None:
    """Make OpenMP's threads sleep while they wait; takes effect on torch only before it is imported.

    By default they spin. Beside decoders on 2 busy cores that cost 60 to 140 ms of CPU per embedded picture, not 12.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _read(name: str, text: str, default: Any) -> Any:
    try:
        if isinstance(default, Path):
            return Path(text).expanduser()
        return type(default)(text)
    except ValueError:
        raise SettingsError(f"{variable(name)} must be {_kind(default)}, got {text!r}") from None


def _kind(default: Any) -> str:
    return {int: "a whole number", float: "a number"}.get(type(default), "text")
