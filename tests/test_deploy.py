"""Images and compose files: what can be checked without an engine, and their commands run as processes with the same variables."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from isocenter.core.settings import Settings
from tests.ports import free_port

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
COMPOSE = sorted(ROOT.glob("docker-compose*.yml"))
IMAGES = [ROOT / f"Dockerfile.{kind}" for kind in ("cpu", "gpu", "rocm")]
#: As the documents' users combine them.
SETS = (
    ("docker-compose.yml", "docker-compose.cpu.yml"),
    ("docker-compose.yml", "docker-compose.gpu.yml"),
    ("docker-compose.yml", "docker-compose.gpu.yml", "docker-compose.cpu.yml"),
    ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.listen.yml"),
    ("docker-compose.server.yml",),
    ("docker-compose.twin.yml",),
)


def services(*names: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found |= yaml.safe_load((ROOT / name).read_text())["services"]
    return found


@pytest.mark.parametrize("file", [pytest.param(f, id=f.name) for f in COMPOSE])
def test_compose_files_follow_the_schema(file: Path) -> None:
    done = subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [pytest.param(f, id=f.name) for f in IMAGES])
def test_dockerfiles_are_clean(file: Path) -> None:
    done = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    text = file.read_text()
    assert "HEALTHCHECK" in text
    assert re.search(r"^USER \d+", text, re.M), "not root"
    assert "HF_HUB_OFFLINE=1" in text
    assert "ORT_DISABLE_TELEMETRY=1" in text
    assert not re.search(r"^# *syntax=", text, re.M), "an engine would fetch its own language from the internet, a moving tag, at each build"
    for image in re.findall(r"^FROM (\S+)", text, re.M):
        assert ":" in image, "images are pinned"
        assert not image.endswith(":latest")
    for source in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.M):
        for name in source.split():
            assert (ROOT / name).exists(), f"{name} is copied but not there"
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines(), f"{name} is copied but does not reach the engine"


@pytest.mark.parametrize("names", [pytest.param(s, id="+".join(s)) for s in SETS])
def test_services_fit_together(names: tuple[str, ...]) -> None:
    found = services(*names)
    for name, service in found.items():
        for needed in service.get("depends_on", {}):
            assert needed in found
            assert "healthcheck" in found[needed]
        for port in service.get("ports", []):
            assert str(port).split(":")[-1] not in ("5432", "6379", "9000"), f"{name} publishes a store"
        if "build" in service:
            assert int(service["stop_grace_period"].removesuffix("s")) >= Settings().job_drain + 30, "jobs and requests end first"
            file = ROOT / service["build"]["dockerfile"]
            assert file.resolve().is_file()
            assert (ROOT / service["build"]["context"]).is_dir()
        else:
            assert re.search(r":[\w.\-]*\d[\w.\-]*$", service["image"]), f"{service['image']} is not pinned"
    if "docker-compose.gpu.yml" in names:
        assert found["inference-worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia"
        assert found["inference-worker-gpu"]["command"][-1] == "1"
    if "docker-compose.cpu.yml" in names:
        assert found["inference-worker-cpu"]["command"][-1] == "2"


def test_names_of_the_documents_stay() -> None:
    server = services("docker-compose.server.yml")["monai_sam2"]
    assert server["container_name"] == "monai_sam2"
    assert server["shm_size"] == "10gb"
    assert server["restart"] == "on-failure"
    assert "CUDA_VISIBLE_DEVICES=0" in server["environment"]
    assert server["ports"] == ["8002:8002"]
    assert "./monai-label/predictions:/code/predictions" in server["volumes"]
    assert {"redis", "postgres", "minio", "server"} <= set(services("docker-compose.yml"))
    # Copies and no links: links do not survive every way in which a folder is copied.
    for name in ("backend/Dockerfile", "monai-label/Dockerfile", "Dockerfile"):
        assert (ROOT / name).read_text() == (ROOT / "Dockerfile.gpu").read_text(), f"cp Dockerfile.gpu {name}"


def test_the_gpu_image_takes_one_cuda() -> None:
    """ONNX Runtime, torch and NVIDIA's libraries are pinned together, and the loader is told where each of them lies."""
    pins = dict(line.split("==") for line in (ROOT / "constraints-gpu.txt").read_text().splitlines() if not line.startswith("#"))
    text = (ROOT / "Dockerfile.gpu").read_text()
    libraries = re.findall(r"\$NVIDIA_LIBRARIES/(\w+)/lib", text)
    assert {f"nvidia-{name.replace('_', '-')}-cu12" for name in libraries} == {name for name in pins if name.startswith("nvidia-")}
    assert {"onnxruntime-gpu", "torch"} <= set(pins)
    cuda = re.findall(r"nvidia/cuda:(\d+\.\d+)", text)
    assert set(cuda) == {".".join(pins["nvidia-cuda-runtime-cu12"].split(".")[:2])}


def test_variables_are_settings() -> None:
    """Every variable that a file hands to our own containers is one that the program reads."""
    known = {f"ISOCENTER_{name.upper()}" for name in Settings.model_fields}
    for name, info in Settings.model_fields.items():
        alias = info.validation_alias
        known |= {str(choice) for choice in getattr(alias, "choices", [])} | {name}
    foreign = {"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "PATH", "PYTHONUNBUFFERED", "HF_HUB_OFFLINE"}
    used = set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", (ROOT / ".env.example").read_text(), re.M)) - {
        "DTT_DB_PASSWORD",
        "COMPOSE_FILE",
        "COMPOSE_PATH_SEPARATOR",
    }
    for file in COMPOSE:
        for service in services(file.name).values():
            if "build" in service:
                environment = service.get("environment", {})
                used |= set(environment) if isinstance(environment, dict) else {e.split("=")[0] for e in environment}
    assert used <= known | foreign, used - known - foreign


def answer(url: str, seconds: float = 180) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as found:
                told: dict[str, Any] = json.load(found)
                return told
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.mark.parametrize("start", ["image", "uvicorn", "monai"])
def test_commands_of_the_images_start_a_server(start: str, tmp_path: Path) -> None:
    """The images' CMD and HEALTHCHECK, the backend's `uvicorn backend.server:app`, and the viewer server's flags."""
    port = free_port()
    environment = {**os.environ, "ISOCENTER_HOME": str(tmp_path), "ISOCENTER_PORTS": str(port), "ISOCENTER_CONTAINER": "1", "API_KEY": ""}
    conf = ["--conf", "models", "segmentation", "--conf", "use_pretrained_model", "false"]
    commands = {
        "image": [str(BIN / "isocenter"), "serve"],
        "uvicorn": [str(BIN / "uvicorn"), "backend.server:app", "--port", str(port)],
        "monai": [str(BIN / "isocenter"), "serve", "--app", "/code/apps/radiology", "--studies", "/code/studies", *conf, "-p", str(port)],
    }
    process = subprocess.Popen(
        commands[start], cwd=ROOT if start == "uvicorn" else tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert answer(f"http://127.0.0.1:{port}/healthz")["status"] == "ok"
        assert answer(f"http://127.0.0.1:{port}/api/biomedparse/v1/health")["status"] == "healthy"
        if start == "image":
            check = re.search(r'HEALTHCHECK[^\[]*\["python", "-c", "(.+)"\]', (ROOT / "Dockerfile.cpu").read_text())
            assert check is not None
            subprocess.run([sys.executable, "-c", check[1]], env=environment, check=True, timeout=120)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) in (0, -signal.SIGTERM)


def test_the_command_of_the_cpu_worker_starts_two_hands(tmp_path: Path) -> None:
    """`inference-worker-cpu`'s own command, on SQLite: both processes are there, and a stop ends them well."""
    from isocenter.jobs.backend import Backend

    program, *words = services("docker-compose.cpu.yml")["inference-worker-cpu"]["command"]
    beats = tmp_path / "beats"
    environment = {**os.environ, "ISOCENTER_HOME": str(tmp_path), "ONNX_PROVIDERS": '["CPUExecutionProvider"]', "INFERENCE_TIMEOUT": "3600"}
    environment["ISOCENTER_WORKER_BEATS"] = str(beats)
    backend = Backend(Settings(home=tmp_path))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([BIN / program, *words], env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        end = time.monotonic() + 120
        while backend.queue.standing().workers.get("cpu") != 2 or not well("cpu", beats):
            assert process.poll() is None
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert not well("cpu", beats), "no beats are left of workers that went"
        assert "ONNX providers using: ['CPUExecutionProvider']" in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
        backend.close()


def test_the_command_of_the_listener_takes_what_a_router_sends(tmp_path: Path) -> None:
    """`listen`'s own command, variables and health check, on SQLite and on a free port; the guide's rules as its file."""
    from pynetdicom import AE
    from pynetdicom.sop_class import Verification

    service, port = services("docker-compose.listen.yml")["listen"], free_port()
    own = {name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", value) for name, value in service["environment"].items() if name.startswith("ISOCENTER_DICOM_")}
    assert own["ISOCENTER_DICOM_HOST"] == "0.0.0.0"
    assert own["ISOCENTER_DICOM_ALLOWED"].startswith("${ISOCENTER_DICOM_ALLOWED:?"), "strangers cannot send"
    (bound,) = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert bound["target"] == own["ISOCENTER_DICOM_RULES"]
    assert service["ports"] == [f"{own['ISOCENTER_DICOM_PORT']}:{own['ISOCENTER_DICOM_PORT']}"]
    assert "dicom-net" in service["build"]["args"]["EXTRAS"].split(",")
    rules = re.search(r"```toml\n(.+?)```", (ROOT / "docs" / "listen.md").read_text(), re.S)
    assert rules is not None
    (tmp_path / "listen.toml").write_text(rules[1])
    own |= {"ISOCENTER_DICOM_PORT": str(port), "ISOCENTER_DICOM_ALLOWED": "PACS,ROUTER1", "ISOCENTER_DICOM_RULES": str(tmp_path / "listen.toml")}
    program, *words = service["command"]
    kind, python, flag, check = service["healthcheck"]["test"]
    assert (kind, python, flag, check.count("11112")) == ("CMD", "python", "-c", 1)

    def well() -> bool:
        return subprocess.run([sys.executable, "-c", check.replace("11112", str(port))], capture_output=True, check=False).returncode == 0

    assert not well()
    environment = {**os.environ, "ISOCENTER_HOME": str(tmp_path / "home"), **own}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([BIN / program, *words], env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        end = time.monotonic() + 180
        while not well():
            assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < end, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.1)
        for title, taken in (("ROUTER1", True), ("STRANGER", False)):
            node = AE(ae_title=title)
            node.add_requested_context(Verification)
            association = node.associate("127.0.0.1", port, ae_title=own["ISOCENTER_DICOM_AE_TITLE"])
            assert association.is_established == taken
            if taken:
                assert association.send_c_echo().Status == 0x0000
                association.release()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        process.kill()
        process.wait()


def well(kind: str, beats: Path) -> bool:
    """Whether the health check of a worker's compose file passes, with its folder in another place; as compose, `$$` is `$`."""
    service = services(f"docker-compose.{kind}.yml")[f"inference-worker-{kind}"]
    shell, check = service["healthcheck"]["test"]
    folder = service["environment"]["ISOCENTER_WORKER_BEATS"]
    assert (shell, check.count(folder), check.count("$$")) == ("CMD-SHELL", 1, 1)
    return subprocess.run(["sh", "-c", check.replace("$$", "$").replace(folder, str(beats))], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_a_worker_is_well_while_all_its_processes_say_so(kind: str, tmp_path: Path) -> None:
    count = int(services(f"docker-compose.{kind}.yml")[f"inference-worker-{kind}"]["command"][-1])
    assert not well(kind, tmp_path / "beats")
    (tmp_path / "beats").mkdir()
    for number in range(count):
        assert not well(kind, tmp_path / "beats")
        (tmp_path / "beats" / str(number)).touch()
    assert well(kind, tmp_path / "beats")
    os.utime(tmp_path / "beats" / "0", (time.time() - 300, time.time() - 300))
    assert not well(kind, tmp_path / "beats"), "one of them is silent"


def test_an_idle_server_ends_by_itself(tmp_path: Path) -> None:
    port = free_port()
    environment = {**os.environ, "ISOCENTER_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [BIN / "isocenter", "serve", "-p", str(port), "--idle-exit", "6s"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert answer(f"http://127.0.0.1:{port}/")["status"] == "UP"
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
