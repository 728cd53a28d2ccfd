"""Report metrics, their clinical check, the route and the two commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isocenter.analysis import report_metrics
from isocenter.analysis.clinical_check import clinical
from isocenter.cli import app
from isocenter.textservice import TextService
from tests.text.test_wire import application


@pytest.mark.parametrize(
    ("candidate", "reference", "kinds"),
    [
        ("A 5 mm nodule in the left upper lobe.", "A 5 mm nodule in the left upper lobe.", []),
        ("A 0.5 cm nodule.", "A 5 mm nodule.", []),
        ("A 5 cm nodule.", "A 5 mm nodule.", ["unit"]),
        ("A 7 mm nodule.", "A 5 mm nodule.", ["number", "number"]),
        ("Mass of 3 x 4 cm.", "Mass of 30 x 40 mm.", []),
        ("A nodule.", "A 5 mm nodule.", ["number"]),
        ("Right lower lobe opacity.", "Left lower lobe opacity.", ["laterality"] * 3),
        ("Bilateral effusions.", "Left effusion.", ["laterality"]),
        ("Pleural effusion.", "No pleural effusion.", ["negation"] * 2),
        ("No consolidation. Effusion is present.", "No effusion, but consolidation is present.", ["negation"] * 2),
        ("There is no pneumothorax or effusion.", "Without effusion or pneumothorax.", []),
        ("", "", []),
    ],
)
def test_what_a_wrong_word_would_cost(candidate: str, reference: str, kinds: list[str]) -> None:
    assert [d.kind for d in clinical(candidate, reference)] == kinds


def test_overlap_is_that_of_the_kept_libraries() -> None:
    pytest.importorskip("rouge_score")
    pytest.importorskip("sacrebleu")
    same = report_metrics.compare("The lungs are clear and the heart is normal.", "The lungs are clear and the heart is normal.")
    assert (same["rouge_l"], round(same["bleu"]), round(same["chrf"])) == (1, 100, 100)
    assert same["clinical"] == {"agree": True, "differences": []}


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    found = report_metrics.compare("a", "b")
    assert found["rouge_l"] is None
    assert "isocenter[reports]" in found["reason"]


def test_the_route(home: Path, minilm: Path) -> None:
    body = {"candidates": ["Effusion on the left side, 3 cm."], "references": ["No effusion on the right side. Nodule, 3 mm."]}
    with application(home, minilm) as client:
        answer = client.post("/api/v1/report-metrics", json=body).json()
        without = client.post("/api/v1/report-metrics", json={**body, "bertscore": False}).json()
    assert 0 < answer["results"][0]["bertscore"]["f1"] < 1
    assert answer["model"] == "all-MiniLM-L6-v2"
    assert {d["kind"] for d in answer["results"][0]["clinical"]["differences"]} == {"unit", "laterality", "negation"}
    assert "bertscore" not in without["results"][0]


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def test_embed_and_score_files(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_TEXT_MODELS", f"all-MiniLM-L6-v2={minilm}")
    monkeypatch.setenv("MODEL_BERTSCORE", "all-MiniLM-L6-v2")
    source = tmp_path / "a.jsonl"
    source.write_text('{"id": 1, "text": "No effusion."}\n{"id": 2, "text": "Ergu\\u00df"}\n')
    code, shown, _ = run("embed", str(source))
    rows = [json.loads(line) for line in shown.splitlines()]
    assert (code, [r["id"] for r in rows], len(rows[0]["embedding"]), rows[0]["model"]) == (0, [1, 2], 384, "all-MiniLM-L6-v2")
    assert run("embed", str(source), "-o", str(tmp_path / "v.npy"))[0] == 0
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), [r["embedding"] for r in rows], atol=1e-6)
    table = tmp_path / "pairs.csv"
    table.write_text('candidate,reference\n"Left, 5 mm","Left, 5 cm"\nclear,clear\n')
    assert run("score", str(table), "-o", str(tmp_path / "s.csv"))[0] == 0
    assert "unit" in (tmp_path / "s.csv").read_text()
    code, shown, _ = run("score", str(table), "--idf")
    assert code == 0
    assert json.loads(shown.splitlines()[1])["f1"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("a.txt", "x", 2), ("a.jsonl", "{", 3), ("a.jsonl", '{"other": 1}\n', 3), ("a.csv", "a,b\n1,2\n", 3), ("a.jsonl", "\ud800", 3)],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, code: int) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert run("embed", str(path))[0] == code


@pytest.fixture
def with_model(minilm: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder to work in, and the settings of somebody who has installed MiniLM for both uses."""
    monkeypatch.setenv("ISOCENTER_TEXT_MODELS", f"all-MiniLM-L6-v2={minilm}")
    monkeypatch.setenv("MODEL_BERTSCORE", "all-MiniLM-L6-v2")
    return tmp_path


def test_files_as_spreadsheets_and_pipes_have_them(with_model: Path) -> None:
    (with_model / "a.csv").write_text("\ufefftext;id\nNo effusion.;1\n", encoding="utf-8")
    code, shown, _ = run("embed", str(with_model / "a.csv"))
    assert (code, json.loads(shown)["id"]) == (0, "1")
    result = CliRunner().invoke(app, ["embed", "-"], input='{"text": "No effusion."}\n')
    assert result.exit_code == 0
    assert json.loads(result.stdout)["embedding"] == pytest.approx(json.loads(shown)["embedding"])


def test_what_could_not_be_written_or_read_is_said_before_anything_is_computed(with_model: Path) -> None:
    source = with_model / "a.jsonl"
    source.write_text('{"text": "a"}\n{"text": \n')
    code, _, shown = run("embed", str(source))
    assert (code, "line 2 is not JSON" in shown) == (3, True)
    source.write_text('{"text": "a"}\n')
    for output, words in (("v.txt", "must end in"), ("v.csv", ".jsonl or .npy"), (".", "must end in")):
        code, _, shown = run("embed", str(source), "-o", str(with_model / output))
        assert (code, words in shown) == (2, True), shown
    assert run("embed", str(with_model / "nowhere.jsonl"))[0] == 2
    assert sorted(p.name for p in with_model.iterdir()) == ["a.jsonl"]


def test_a_file_is_written_whole_or_not_at_all(with_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after its first part, with vectors of an earlier run that stay as they were."""
    source, output = with_model / "a.jsonl", with_model / "v.npy"
    source.write_text("".join(f'{{"text": "finding {i % 7}"}}\n' for i in range(1000)))
    output.write_bytes(b"earlier")
    answers: list[Any] = []
    answer = TextService.answer

    def interrupted(self: TextService, job: Any) -> Any:
        if answers:
            raise KeyboardInterrupt
        answers.append(answer(self, job))
        return answers[0]

    with monkeypatch.context() as patched:
        patched.setattr(TextService, "answer", interrupted)
        assert CliRunner().invoke(app, ["embed", str(source), "-o", str(output)]).exit_code != 0
    assert output.read_bytes() == b"earlier"
    assert sorted(p.name for p in with_model.iterdir()) == ["a.jsonl", "v.npy"]
    assert run("embed", str(source), "-o", str(output))[0] == 0
    found = np.load(output)
    assert found.shape == (1000, 384)
    np.testing.assert_allclose(found[7:14], found[:7], atol=1e-6)


def test_rows_are_read_as_they_are_needed(with_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a million rows is never in memory as a whole: when the first part is answered, few parts have been read."""
    source = with_model / "a.jsonl"
    source.write_text("".join(f'{{"text": "finding {i % 7}"}}\n' for i in range(2000)))
    begun: list[int] = []
    ahead: list[int] = []
    begin, answer = TextService.embed, TextService.answer

    def counted(self: TextService, name: str, encoder: Any, texts: Any, **how: Any) -> Any:
        begun.append(len(texts))
        return begin(self, name, encoder, texts, **how)

    def told(self: TextService, job: Any) -> Any:
        ahead.append(sum(begun) - 100 * len(ahead))
        return answer(self, job)

    monkeypatch.setattr(TextService, "embed", counted)
    monkeypatch.setattr(TextService, "answer", told)
    assert run("embed", str(source), "-o", str(with_model / "v.jsonl"))[0] == 0
    assert len((with_model / "v.jsonl").read_text().splitlines()) == 2000
    assert (sum(begun), max(ahead)) == (2000, 300)


def test_commands_name_the_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ISOCENTER_HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    code, _, shown = run("embed", str(tmp_path / "a.jsonl"))
    assert code == 4
    assert "isocenter models pull" in shown
