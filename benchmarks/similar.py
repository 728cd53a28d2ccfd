"""Finding what is alike: the same lesion at another visit, the same patient in other visits, and how long a search takes.

Ranking over the lesion graph is compared with ranking by the lesions' own vectors. `lesions`: 906 real pairs of `dlt_lesion_pairs`,
of which only end points, boxes and spacings are known, so a vector is of size and shape. `cohort`: simulated patients, whose
lesions have images, with the vectors that are used in earnest. `speed`: 10,000 vectors in every store. Nobody's track joins the
two visits that are compared: each side knows only its own scan. Run all of it, or parts by name.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import sqlalchemy as sa
from numpy.typing import NDArray

from isocenter.analysis import appearance
from isocenter.analysis.lesions import measure_lesion, split
from isocenter.analysis.similar import Seen, case_vector, graph_vectors, unit
from isocenter.core.geometry import Grid
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.store.database import Database, url_of
from isocenter.store.vector_blobs import BlobVectors, IndexedVectors
from isocenter.store.vector_search import Entry
from isocenter.store.vector_server import PGVECTOR, RUVECTOR, ServerVectors

DATA = Path(os.environ.get("ISOCENTER_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
Floats = NDArray[np.float64]


def scores(query: Floats, gallery: Floats, right: Sequence[set[int]], scans: Sequence[Sequence[str]] = ()) -> tuple[float, float, float]:
    """(mean reciprocal rank, share right at the first place, share right among five) of queries with known answers.

    scans: of queries and gallery; a scan is not searched for what is in itself.
    """
    near = query @ gallery.T
    if scans:
        near[np.array(scans[0])[:, None] == np.array(scans[1])[None, :]] = -np.inf
    ranks = np.array([1 + min(int((near[i] > near[i, j]).sum()) for j in wanted) for i, wanted in enumerate(right)])
    return float((1 / ranks).mean()), float((ranks == 1).mean()), float((ranks <= 5).mean())


def table(found: dict[str, Floats], keys: Sequence[str]) -> Floats:
    return np.stack([unit(found[k]) for k in keys])


def compare(title: str, queries: list[Seen], gallery: list[Seen], right: list[set[int]]) -> None:
    """Print plain and graph ranking, of all queries and of those that have company in their scan."""
    here: dict[str, Floats] = {}
    there: dict[str, Floats] = {}
    for side, lesions in ((here, queries), (there, gallery)):
        for scan in {k.visit for k in lesions}:
            side.update(graph_vectors([k for k in lesions if k.visit == scan]))
    keys, names = [k.key for k in queries], [k.key for k in gallery]
    own = [np.stack([unit(np.asarray(k.vector, np.float64)) for k in side]) for side in (queries, gallery)]
    graph = [table(here, keys), table(there, names)]
    company = [i for i, k in enumerate(queries) if sum(o.visit == k.visit for o in queries) > 1]
    for label, rows in ((f"all {len(queries)}", list(range(len(queries)))), (f"{len(company)} with company", company)):
        for name, (q, g) in (("own vector", own), ("over the graph", graph)):
            mrr, first, five = scores(q[rows], g, [right[i] for i in rows], ([queries[i].visit for i in rows], [k.visit for k in gallery]))
            print(f"{title}, {label}, {name}: MRR {mrr:.3f}, right at once {100 * first:.1f} %, among five {100 * five:.1f} %")


# Real pairs


def lesions() -> None:
    """Both ends of every pair, from shape and size alone."""
    data = json.loads((DATA / "dlt_lesion_pairs" / "valid.json").read_text())
    sides: dict[str, dict[str, tuple[str, list[float]]]] = {"source": {}, "target": {}}
    pairs: list[tuple[str, str]] = []
    for pair in data.values():
        ends = []
        for side in ("source", "target"):
            centre, image = pair[f"{side} center"], pair[side]
            key = f"{image}:{centre}"
            sides[side][key] = (image, _shape(pair, side))
            ends.append(key)
        pairs.append((ends[0], ends[1]))
    seen = {side: [Seen(key, image, 0.0, key, vector) for key, (image, vector) in rows.items()] for side, rows in sides.items()}
    everything = np.array([k.vector for rows in seen.values() for k in rows])
    middle, spread = everything.mean(axis=0), everything.std(axis=0)
    ready = {s: [Seen(k.key, k.visit, 0.0, k.key, ((np.array(k.vector) - middle) / spread).tolist()) for k in rows] for s, rows in seen.items()}
    places = {k.key: i for i, k in enumerate(ready["target"])}
    right: dict[str, set[int]] = {}
    for a, b in pairs:
        right.setdefault(a, set()).add(places[b])
    compare("real pairs", ready["source"], ready["target"], [right[k.key] for k in ready["source"]])


def _shape(pair: dict[str, list[float]], side: str) -> list[float]:
    """Size and shape in mm: diameters, extent of the box, slant of the longest diameter. Their source gives pixels."""
    x, y, z = pair[f"{side} spacing"]
    mark = np.array(pair[f"{side} recist coordinate"]).reshape(4, 2) * (x, y)
    long, short = (float(np.linalg.norm(mark[i + 1] - mark[i])) for i in (0, 2))
    across = mark[1] - mark[0]
    turn = math.atan2(float(across[1]), float(across[0]))
    _, _, _, width, height, depth = pair[f"{side} box"]
    sizes = [math.log(max(v, 1.0)) for v in (long, short, width * x, height * y, depth * z)]
    return [*sizes, short / long, math.cos(2 * turn), math.sin(2 * turn)]


# A simulated cohort


def cohort(patients: int = 80, seed: int = 7) -> None:
    """Patients of 1 to 6 lesions, seen twice; every patient's disease has its own contrast and texture, every lesion its own size."""
    rng = np.random.default_rng(seed)
    visits: tuple[list[Seen], list[Seen]] = ([], [])
    cases: tuple[list[Floats], list[Floats]] = ([], [])
    for p in range(patients):
        contrast, grain, count = rng.uniform(-90, 90), rng.uniform(4, 30), int(rng.integers(1, 7))
        radii, squeeze = rng.uniform(5, 13, count), rng.uniform(0.6, 1.0, (count, 2))
        rate = rng.normal(0, 0.15)
        for side in (0, 1):
            # Two scans a visit, a month apart: a patient's course is known on both sides.
            rows = []
            for scan in (0, 1):
                for k in range(count):
                    scale = math.exp((2 * side + scan) * (rate + rng.normal(0, 0.03)) / 3)
                    vector, volume = _drawn(rng, radii[k] * scale, squeeze[k], contrast + rng.normal(0, 6), grain)
                    rows.append(Seen(f"{p}:{scan}:{k}", f"{p}:{side}:{scan}", 30.0 * scan, f"{p}:{k}", vector, volume))
            visits[side].extend(r for r in rows if r.key.split(":")[1] == "0")
            cases[side].append(case_vector(rows))
    compare("cohort", visits[0], visits[1], [{i} for i in range(len(visits[0]))])
    looks = [
        np.stack([unit(np.mean([unit(np.asarray(k.vector)) for k in side if k.key.split(":")[0] == str(p)], axis=0)) for p in range(patients)])
        for side in visits
    ]
    for name, (q, g) in (("mean vector", looks), ("with structure and course", [np.stack(c) for c in cases])):
        mrr, first, five = scores(q, g, [{i} for i in range(patients)])
        print(f"cohort, {patients} patients, {name}: MRR {mrr:.3f}, right at once {100 * first:.1f} %, among five {100 * five:.1f} %")


def _drawn(rng: np.random.Generator, radius: float, squeeze: Floats, contrast: float, grain: float) -> tuple[list[float], float]:
    """A lesion's vector and volume, of a small image with noise."""
    grid = Grid((30, 40, 40), (1.0, 1.0, 1.5))
    z, y, x = np.ogrid[:30, :40, :40]
    inside = (1.5 * (z - 15) / squeeze[0]) ** 2 + ((y - 20) / squeeze[1]) ** 2 + (x - 20.0) ** 2 <= radius**2
    image = Volume.on_grid((60 + contrast * inside + rng.normal(0, grain, grid.shape)).astype(np.int16), grid, modality="CT", unit="HU")
    box, part = split(inside)[0]
    size = measure_lesion(part, box, grid, image)
    return [float(v) for v in appearance.vector(part, box, size, image)], size.volume_mm3


# Speed


@contextmanager
def stores() -> Iterator[dict[str, tuple[Database, Callable[[Database], BlobVectors | ServerVectors]]]]:
    """Every store there is, on real databases. ruvector's extension is stood in for by pgvector's functions under its names."""
    from tests.jobs import servers
    from tests.jobs.test_vectors import _install_ruvector

    with tempfile.TemporaryDirectory() as folder, servers.postgres(Path(folder)) as server:
        url = server.url("postgres")
        engine = sa.create_engine(url_of(Settings(database_url=url)), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for name in ("plain", "bare", "ru"):
                connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        _install_ruvector(server.url("ru"))
        sqlite = Database(f"sqlite:///{folder}/v.db")
        plain, bare, ru = (Database(url_of(Settings(database_url=server.url(name)))) for name in ("plain", "bare", "ru"))
        yield {
            "in process, exact": (sqlite, BlobVectors),
            "in process, ruvector's graph": (sqlite, IndexedVectors),
            "pgvector": (plain, lambda d: ServerVectors(d, PGVECTOR)),
            "pgvector, no index": (bare, lambda d: ServerVectors(d, replace(PGVECTOR, operators="absent_ops"))),
            "pgvector, no index, no memory": (bare, lambda d: ServerVectors(d, replace(PGVECTOR, operators="absent_ops"), 0)),
            "ruvector's SQL, no index": (ru, lambda d: ServerVectors(d, RUVECTOR)),
            "ruvector's SQL, no index, no memory": (ru, lambda d: ServerVectors(d, RUVECTOR, 0)),
        }
        for database in (sqlite, plain, bare, ru):
            database.close()


def speed(count: int = 10_000) -> None:
    """Median time of a search for ten among `count` vectors: a lesion's graph (72 numbers), 384, MedSigLIP's (1,152) and its graph (3,456)."""
    rng = np.random.default_rng(0)
    with stores() as known:
        for size in (3 * appearance.DIMENSIONS, 384, 1152, 3456):
            centres = rng.standard_normal((200, size))
            rows = centres[rng.integers(0, 200, count)] + 0.5 * rng.standard_normal((count, size))
            vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
            queries = vectors[:40] + np.float32(0.3 / math.sqrt(size)) * rng.standard_normal((40, size)).astype(np.float32)
            exact: list[set[str]] = []
            for name, (database, make) in known.items():
                store = make(database)
                collection = f"c{size}"
                if store.count(collection) == 0:
                    store.replace(collection, "k", [Entry(f"k{i}", v) for i, v in enumerate(vectors)])
                started = time.perf_counter()
                store.search(collection, queries[0])
                first = time.perf_counter() - started
                took, found, before = [], [], _processor()
                for q in queries:
                    started = time.perf_counter()
                    hits = store.search(collection, q)
                    took.append(time.perf_counter() - started)
                    found.append({h.key for h in hits})
                used = 1000 * (_processor() - before) / len(queries)
                exact = exact or found
                same = np.mean([len(a & b) / 10 for a, b in zip(found, exact, strict=True)])
                print(
                    f"{count} x {size}, {name} ({hits.how}): p50 {1000 * float(np.median(took)):.2f} ms, processor {used:.2f} ms, "
                    f"{100 * same:.0f} % as exact, the first {first:.2f} s",
                    flush=True,
                )


def _processor() -> float:
    """Processor seconds of this process and of the servers that it started."""
    own = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            own += sum(child.cpu_times()[:2])
    return own


if __name__ == "__main__":
    parts = {"lesions": lesions, "cohort": cohort, "speed": speed}
    for part in sys.argv[1:] or list(parts):
        parts[part]()
