"""`docs/coming-from/` beside the reference documents: nothing of theirs is left out, and what it says to type works."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isocenter.core.phantom import phantom
from isocenter.io import nifti
from tests.conftest import DATA, ROOT
from tests.guides import pages
from tests.http.conftest import dicom_series, serve, zipped
from tests.text.conftest import minilm_folder

PAGES = {
    "000": "biomedparse.md",
    "001": "monai-label.md",
    "002": "inference-service.md",
    "003": "digital-twin.md",
    "004": "gpu-service.md",
}
#: Words in capitals in the documents that are no variables of theirs.
NO_VARIABLES = {
    "VM_IP", "INSTANCE_IP", "API_REFERENCE", "GPU_INFO", "HTTP_CODE", "LAMBDA_LABS_SETUP", "SAMPLE_DATA", "SERVER_DEPLOYMENT_GUIDE", "VERSION_ID",
}  # fmt: skip
SAMPLE = "sample-data/2.000000-PRE LIVER-76970.zip"


def page(name: str) -> str:
    return (ROOT / "docs" / "coming-from" / name).read_text()


def document(number: str) -> str:
    found = sorted((DATA.parent / "reference").glob(f"{number}_*.txt"))
    if not found:
        pytest.skip("needs the reference documents")
    return found[0].read_text()


def left(name: str) -> list[str]:
    """What stands in a page's left columns."""
    return [there for there, _ in pages.rows(page(name))]


@pytest.mark.parametrize("number", PAGES)
def test_every_command_of_the_document_is_there(number: str) -> None:
    typed = [span for cell in left(PAGES[number]) for span in pages.spans(cell)]
    patterns = [re.compile(re.escape(re.sub(r"\s+", " ", span)).replace("…", ".*")) for span in typed]
    commands = [c for b in pages.blocks(document(number), "bash", "cmd", "powershell") if not b.startswith("#!") for c in pages.lines(b)]
    missing = [c for c in commands if not any(p.fullmatch(c) for p in patterns)]
    assert not missing


@pytest.mark.parametrize("number", PAGES)
def test_every_variable_of_the_document_is_there(number: str) -> None:
    text = document(number)
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]*[A-Z0-9]\b", text)) - NO_VARIABLES
    answers = {
        name: here for there, here in pages.rows(page(PAGES[number])) for span in pages.spans(there) for name in re.findall(r"[A-Z0-9_]+", span)
    }
    assert named <= set(answers), named - set(answers)
    for name in named - pages.variables() - pages.OTHERS:
        assert answers[name].startswith(("not used", "the same: the database container's own")) or name in pages.variables(), name


@pytest.mark.parametrize("number", PAGES)
def test_every_trouble_of_the_document_is_there(number: str) -> None:
    text = document(number)
    if number == "003":
        entries = re.findall(r"^- (.+)", text.split("### Risks")[1].split("## ")[0], re.MULTILINE)
    elif number == "000":
        entries = re.findall(r"^- (.+?):", text.split("Troubleshooting")[1], re.MULTILINE)
    elif "## Troubleshooting" in text:
        entries = re.findall(r"^### (.+)", re.split(r"^## Troubleshooting", text, flags=re.MULTILINE)[1].split("\n## ")[0], re.MULTILINE)
    else:
        entries = []
    section = page(PAGES[number]).split("## When something is wrong")[1]
    known = [there.partition(":")[0] for there, _ in pages.rows(section)]
    assert known
    assert number == "004" or len(entries) >= 3
    missing = [e for e in entries if not any(e.startswith(k) for k in known)]
    assert not missing


def test_endpoints_profiles_and_packages_are_there() -> None:
    for heading in re.findall(r"^#### \d\. (GET|POST) `(.+)`", document("001"), re.MULTILINE):
        assert " ".join(heading) in page("monai-label.md")
    for name in re.findall(r"^\| `(/\w+)` \| (?:GET|POST)", document("004"), re.MULTILINE):
        assert f"`{name}`" in page("gpu-service.md")
    profiles = re.findall(r"^\| `(\w+)` ", document("003").split("predefined profile")[1].split("###")[0], re.MULTILINE)
    assert len(profiles) == 6
    for name in profiles:
        assert f"`{name}`" in page("digital-twin.md")
    assert len(re.findall(r"^\| `", document("003").split("Python Dependencies")[1].split("## ")[0], re.MULTILINE)) == 13


@pytest.mark.parametrize("name", PAGES.values())
def test_what_is_typed_here_would_work(name: str) -> None:
    typed = pages.typed_here(page(name))
    assert typed
    for line in typed:
        pages.check(line, mention=True)
    for block in pages.blocks(page(name), "bash", "cmd", "powershell"):
        for line in pages.lines(block):
            assert pages.is_command(line), line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("docker compose -f docker-compose.yml logs inference-worker-tpu", "no service"),
        ("docker compose -f docker-compose.none.yml up", "there is no"),
        ("docker build -t x -f backend/Dockerfile --build-arg EXTRAS=fast,none .", "no extra none"),
        ("docker run -e NOBODY_KNOWS=1 x", "nobody reads"),
        ("docker run -p 9999:9999 x", "does not listen"),
        ("isocenter serve --no-such-flag", "no-such-flag"),
        ("isocenter models pool x", "pool"),
        ("isocenter models pull sam9", "no sam9"),
        ("uvicorn backend.server:application", "has no application"),
        ("NOT_OURS=1 isocenter serve", "nobody reads NOT_OURS"),
        ("python missing.py", "there is no missing.py"),
        ("make nothing", "knows no nothing"),
    ],
)
def test_a_line_that_could_not_work_is_found(line: str, told: str) -> None:
    with pytest.raises(pages.WrongLineError, match=told):
        pages.check(line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the files that the examples name."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    place = tmp_path_factory.mktemp("typed")
    made = phantom((43, 64, 64))
    # The click of the examples is at [256, 256, 40], so the pictures have 512 pixels a side.
    large = np.repeat(np.repeat(made.volume.array, 8, 1), 8, 2).astype(np.int16)
    series = zipped(dicom_series(large, spacing=(0.75, 0.75, 9.0)))
    (place / "sample-data").mkdir()
    (place / SAMPLE).write_bytes(series)
    (place / "series.zip").write_bytes(series)
    (place / "volume.nii.gz").write_bytes(nifti.write(made.volume.array, made.volume.grid))
    Image.fromarray(np.clip((made.volume.array[20] + 160) / 400 * 255, 0, 255).astype(np.uint8)).save(place / "example.png")
    return place


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a text model where there is one."""
    models = f"all-MiniLM-L6-v2={minilm_folder()}" if minilm_folder() else ""
    home = tmp_path_factory.mktemp("home")
    with serve(home, ISOCENTER_MIN_FREE_BYTES="0", ISOCENTER_JOB_WORKERS="0", ISOCENTER_TEXT_MODELS=models) as (addresses, _):
        yield addresses[0]


def curl(line: str, folder: Path, address: str) -> str:
    """What a curl line of a page answers; a status of 400 or more is an error."""
    # `head` ends before all is written, which `pipefail` takes for a fault; `jq` prints, and may not be here.
    filled = pages.OURS.sub(address, re.sub(r" \| (jq \.|head -\d+)$", "", line)).replace("/path/to/", "").replace("$API_KEY", "none")
    filled = re.sub(r"^curl ", "curl -sS --fail-with-body ", filled)
    done = subprocess.run(["bash", "-o", "pipefail", "-c", filled], cwd=folder, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout[:500]!r} {done.stderr.decode()}"
    return done.stdout.decode(errors="replace")


@pytest.mark.parametrize("name", PAGES.values())
def test_curl_lines_are_answered(name: str, folder: Path, address: str) -> None:
    lines = [line for line in dict.fromkeys(pages.typed_here(page(name))) if line.startswith("curl ") and pages.OURS.search(line)]
    assert lines
    if name == "gpu-service.md" and minilm_folder() is None:
        lines = [line for line in lines if "-d" not in line]
    found: dict[str, str] = {}
    for line in lines:
        if "fetch-npz" in line:
            line = line.replace("seg_XXXX.npz", found["mask_url"]).replace("prob_YYYY.npz", found["heatmap_url"])
        answer = curl(line, folder, address)
        if "predict-3d-nifti" in line:
            found = {k: str(v).removeprefix("/files/") for k, v in json.loads(answer)["results"][0].items() if k.endswith("_url")}
    if name == "monai-label.md":
        assert b'"prompt_info"' in (folder / "seg_result.dat").read_bytes()[:500]
        assert (folder / "mask.nii.gz").read_bytes()[:2] == b"\x1f\x8b"


@pytest.mark.parametrize("name", PAGES.values())
def test_python_on_the_page_runs(name: str, tmp_path: Path) -> None:
    programs = pages.blocks(page(name), "python")
    programs += [span.split('-c "', 1)[1].rstrip('"') for span in pages.typed_here(page(name)) if span.startswith('python -c "')]
    if not programs:
        return
    if any("preprocessed.safetensors" in p for p in programs):
        from isocenter.followup.files import save_preprocessed

        save_preprocessed(tmp_path / "preprocessed.safetensors", phantom((12, 16, 16)).volume)
    for program in programs:
        done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
