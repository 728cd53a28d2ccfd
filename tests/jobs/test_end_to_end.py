"""A real scan and a real network through `isocenter batch`, and through server, PostgreSQL, Redis and a Celery worker."""

from __future__ import annotations

from pathlib import Path

from benchmarks import endtoend
from tests.jobs import servers
from tests.jobs.conftest import new_database


def test_batch_job_and_dicom_agree(tmp_path: Path, data: Path, postgres: servers.Postgres, redis: servers.Server) -> None:
    """No card is there, so the processor's worker takes the overflow of the queue `gpu`."""
    assert (data / "brainchop_mit").is_dir()
    found = endtoend.run(tmp_path, new_database(postgres), f"redis://127.0.0.1:{redis.port}/0", crop=64)
    assert found.structures >= 10
    assert found.volume_ml > 20
    assert found.same_labels == 1.0, "a job's mask is the batch's"
    assert found.seg_same > 0.9999, "the SEG lies where the mask lies"
    assert found.seg_structures >= found.structures
    assert found.workers["gpu"] == "0"
    for name, job in found.jobs.items():
        assert (job["queue"], job["model"], job["attempts"]) == ("gpu", "model18cls", 1)
        assert [what for what, _ in found.claims[name]] == ["submitted", "claimed", "completed"]
    assert {artifact["name"] for artifact in found.jobs["t1.zip"]["artifacts"]} == {"mask.nii.gz", "mask.dcm", "measurements.json"}
