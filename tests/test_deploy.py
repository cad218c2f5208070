"""docker-compose.yml and the Dockerfile name what exists: checked without an engine."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from lookalike.cli import COMMANDS
from lookalike.settings import PREFIX, Settings

ROOT = Path(__file__).parent.parent


def _compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())


def test_compose__every_setting_is_one() -> None:
    known = {f.name: f for f in fields(Settings)}
    for service in _compose()["services"].values():
        for name in service.get("environment", {}):
            if name.startswith(PREFIX):
                setting = name.removeprefix(PREFIX).lower()
                assert setting in known or known[setting.removesuffix("_file")].metadata["secret"], name


def test_compose__our_services_run_commands_that_exist() -> None:
    services = _compose()["services"]
    for name in ("backend", "workers"):
        program, command = services[name]["command"]
        assert program == "lookalike"
        assert command in COMMANDS


def test_compose__every_variable_has_an_example_and_no_password_is_written_down() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    wanted = set(re.findall(r"(?<!\$)\$\{(\w+)", text))
    example = (ROOT / ".env.example").read_text().split()
    assert {line.removesuffix("=") for line in example} == wanted
    assert all(line.endswith("=") for line in example)


def test_compose__label_studio_may_call_the_backend() -> None:
    environment = _compose()["services"]["label-studio"]["environment"]
    assert environment["LABEL_STUDIO_ML_BLOCK_LOCAL_IP"] == "false"
    assert environment["LABEL_STUDIO_SSRF_PROTECTION_ENABLED"] == "false"


def test_dockerfile__copies_what_exists() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
