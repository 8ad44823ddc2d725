"""Dockerfile and compose.yaml, as far as one can tell without a container: what they name exists,
and the commands in them do what they shall."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from scripted_engine import ScriptedEngine
from serving import serving

from thinktalk.__main__ import parser
from thinktalk.serve.app import ServeOptions

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PREFIX = "THINKTALK_"


def instructions(name: str) -> list[str]:
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return re.findall(rf"^{name} (.*)$", joined, flags=re.MULTILINE)


def environment() -> dict[str, str]:
    """The image's."""
    [words] = [shlex.split(line) for line in instructions("ENV") if PREFIX in line]
    return dict(word.split("=", 1) for word in words)


def defaults(text: str) -> str:
    """${NAME:-value} -> value."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_image_is_built_from_what_exists() -> None:
    [torch] = [d for d in PROJECT["dependencies"] if d.startswith("torch")]
    assert f"'{torch}'" in DOCKERFILE, "one range of torch, in both"
    [extras] = re.findall(r"'\.\[(.*?)\]'", DOCKERFILE)
    assert {*extras.split(",")} <= PROJECT["optional-dependencies"].keys()
    copied = {name for line in instructions("COPY") for name in line.split()[:-1]}
    copied = {name for name in copied if not name.startswith(("/", "--"))}
    assert copied >= {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "src"}
    kept = {li[1:] for li in (ROOT / ".dockerignore").read_text().splitlines() if li[:1] == "!"}
    assert kept == copied and all((ROOT / name).exists() for name in copied)
    user = instructions("USER")[-1]
    assert user.isdecimal() and user != "0", "nobody's root"


def test_the_image_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        if name.startswith(PREFIX):
            monkeypatch.setenv(name, value)
    command = json.loads(instructions("CMD")[-1])
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["thinktalk"]
    options = parser().parse_args(command)
    assert (options.command, options.host, options.port) == ("serve", "0.0.0.0", 8000)
    assert instructions("EXPOSE") == [str(options.port)]


def test_the_health_check() -> None:
    [line] = instructions("HEALTHCHECK")
    words = json.loads(line[line.index("[") :])
    assert words[0] == "python"

    def healthy(port: int | str) -> bool:
        env = os.environ | {"THINKTALK_PORT": str(port)}
        call = [sys.executable, *words[1:]]
        return subprocess.run(call, env=env, stderr=subprocess.DEVNULL).returncode == 0

    with serving(ScriptedEngine(), ServeOptions(keys=("secret",))) as url:
        port = url.rsplit(":", 1)[1]
        assert healthy(port)
    assert not healthy(port)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_services_set_options_that_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = vars(parser().parse_args(["serve"]))
    service = COMPOSE["services"][name]
    for key, text in service["environment"].items():
        if key.startswith(PREFIX):
            assert key.removeprefix(PREFIX).lower() in known, key
            monkeypatch.setenv(key, defaults(text))
    options = parser().parse_args(["serve"])
    assert options.model == {"cpu": "spark", "cuda": "Qwen/Qwen2.5-Omni-7B"}[name]
    assert options.device == ("cuda" if name == "cuda" else "cpu")
    assert options.api_key is options.limit is options.ice_server is None, "empty is not given"
    build = service["build"]
    arguments = build.get("args", {}) if isinstance(build, dict) else {}
    declared = {line.split("=")[0] for line in instructions("ARG")}
    assert arguments.keys() <= declared
    [volume] = service["volumes"]
    assert volume.split(":")[0] in COMPOSE["volumes"]
    assert volume.split(":")[1] == instructions("VOLUME")[0] == environment()["HF_HOME"]
    [port] = service["ports"]
    assert defaults(port) == "127.0.0.1:8000:8000", "nobody outside, unless somebody says so"


def test_prometheus_may_read_the_figures() -> None:
    config: Any = yaml.safe_load(COMPOSE["configs"]["prometheus"]["content"])
    [target] = config["scrape_configs"][0]["static_configs"][0]["targets"]
    for name in ("cpu", "cuda"):
        service = COMPOSE["services"][name]
        assert target.split(":")[0] in service["networks"]["default"]["aliases"]
        origin = defaults(service["environment"]["THINKTALK_ALLOW_ORIGIN"])
        for keys in ((), ("secret",)):
            options = ServeOptions(keys=keys, origins=(origin,))
            with serving(ScriptedEngine(), options) as url:
                reply = urlopen(Request(f"{url}/metrics", headers={"Host": target}))
                assert b"thinktalk_sessions" in reply.read()
