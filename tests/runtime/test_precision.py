"""Precision and place: real cards, real models, and the document's intent where its arithmetic fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from docs.cards import MACHINES, MODELS, decide
from isocenter.core.model import ModelSpec, Task
from isocenter.runtime import precision
from isocenter.runtime.devices import Machine
from isocenter.runtime.environment import GIB
from isocenter.runtime.precision import budgets, ladder
from isocenter.runtime.profiles import PROFILES, choose

#: The deployment document's own table of feasibility, and its precision tiers, as decisions. 27B in 16 bits takes 54 GB.
WANTED = {
    ("Kaggle, T4", "MedGemma 4B"): "float16",  # it reports 14.7 GiB and has no bfloat16 of its own
    ("Kaggle, T4", "MedGemma 27B"): "does not fit",
    ("Kaggle, 2 x T4", "MedGemma 27B"): "nf4, 2 GPUs",
    ("Colab, A100-40", "MedGemma 27B"): "nf4",  # not the profile's float16
    ("Colab, A100-80", "MedGemma 27B"): "bfloat16",
    ("RTX 4090", "MedGemma 27B"): "nf4",
    ("RTX 4090", "MedGemma 4B"): "bfloat16",
    ("RTX 3060 12 GB", "MedGemma 4B"): "bfloat16",
    ("RTX 3080 10 GB", "MedGemma 4B"): "nf4",
    ("RTX 3070 8 GB", "MedGemma 4B"): "nf4",
    ("V100-16", "MedGemma 4B"): "float16",
    ("Kaggle, P100", "MedGemma 4B"): "float16",
    ("Kaggle, T4", "nnU-Net"): "float32, processor",  # the profile's choice
    ("V100-16", "nnU-Net"): "float16",
    ("MacBook M1, 16 GB", "MedGemma 4B"): "float16",
    ("Mac Studio M2 Max, 64 GB", "MedGemma 4B"): "bfloat16",
    ("Instinct MI210", "MedGemma 27B"): "bfloat16",
    ("Instinct MI300X", "SAM 3"): "bfloat16",
    ("H200", "MedGemma 27B"): "bfloat16",
    ("Laptop, no GPU, 16 GB", "MedGemma 4B"): "bfloat16, processor",  # 4-bit weights only save memory there
    ("Laptop, no GPU, 16 GB", "MedGemma 27B"): "does not fit",
    ("RTX 4090, half taken by others", "MedGemma 4B"): "bfloat16",
    ("RTX 4090, half taken by others", "MedGemma 27B"): "bfloat16, 14% on the GPU",
}


@pytest.mark.parametrize(("machine", "model"), WANTED)
def test_decision(machine: str, model: str) -> None:
    assert decide(MACHINES[machine], MODELS[model]).words == WANTED[machine, model]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", MODELS)
def test_no_rung_takes_more_than_there_is(machine: str, model: str) -> None:
    """And none asks a card for what it cannot do."""
    here, spec = MACHINES[machine], MODELS[model]
    room = budgets(here)
    rungs = ladder(spec, here, room, profile=choose(here))
    assert [r.rank for r in rungs] == sorted(r.rank for r in rungs)
    for rung in rungs:
        assert all(rung.need(name) <= room[name] for name in {rung.device, *rung.shares})
        weights, scratch = precision.declared(spec, rung.precision, "")
        assert (sum(rung.shares.values()), rung.scratch) == (weights + (weights // 16 if rung.spread else 0), scratch)
        assert rung.precision != "nf4" or here.device(rung.device).kind != "mps"
        assert not (rung.precision == "nf4" and rung.spread and "cpu" in rung.shares)


@pytest.mark.parametrize(
    ("machine", "profile"),
    [
        ("Kaggle, T4", "kaggle_t4"),
        ("Kaggle, P100", "kaggle_t4"),
        ("Colab, T4", "colab_t4"),
        ("Colab, A100-40", "colab_a100"),
        ("RTX 4060 Ti 16 GB", "local_16gb"),
        ("RTX 3090", "local_24gb"),
        ("A10", "local_24gb"),
        ("Laptop, no GPU, 16 GB", "cpu_only"),
    ],
)
def test_profile(machine: str, profile: str) -> None:
    assert choose(MACHINES[machine]).name == profile


def test_profiles_are_the_documents() -> None:
    assert {n: (p.narrative, p.place("isocenter.models.nnunet:X"), p.batch, p.database) for n, p in PROFILES.items()} == {
        "kaggle_t4": ("4B", "cpu", 1, "in-process"),
        "colab_t4": ("4B", "cpu", 1, "in-process"),
        "colab_a100": ("27B", "auto", 4, "postgres"),
        "local_16gb": ("4B", "auto", 2, "postgres"),
        "local_24gb": ("4B", "auto", 4, "postgres"),
        "cpu_only": ("4B", "cpu", 1, "in-process"),
    }


def first(machine: Machine, spec: ModelSpec, **how: str) -> str:
    return ladder(spec, machine, budgets(machine), profile=choose(machine), **how)[0].words  # type: ignore[arg-type]


def test_everything_can_be_insisted_on() -> None:
    rtx, small = MACHINES["RTX 3090"], MODELS["MedGemma 4B"]
    assert first(rtx, small, precision="nf4") == "nf4 on cuda:0"
    assert first(rtx, small, precision="float16") == "float16 on cuda:0"
    assert first(rtx, small, prefer="float16") == "float16 on cuda:0"
    assert first(rtx, small, device="cpu") == "bfloat16 on cpu"
    assert first(rtx, MODELS["MedSAM"], precision="nf4") == "bfloat16 on cuda:0", "a model without that precision keeps its own order"
    assert first(MACHINES["2 x RTX 3090"], small, device="cuda:1") == "bfloat16 on cuda:1"


def test_what_is_not_installed_or_broken_is_not_chosen() -> None:
    rtx, small = MACHINES["RTX 3070 8 GB"], MODELS["MedGemma 4B"]
    assert first(replace(rtx, packages=rtx.packages - {"bitsandbytes"}), small).startswith("bfloat16 on cuda:0 + cpu")
    assert first(replace(rtx, packages=frozenset({"torch"})), small) == "bfloat16 on cpu"
    broken = replace(rtx, devices=(replace(rtx.devices[0], fault="this build of torch has no code for sm_86"),))
    assert first(broken, small) == "bfloat16 on cpu"
    assert choose(broken).name == "cpu_only"


def test_a_model_of_one_precision_stays_in_it() -> None:
    spec = ModelSpec("net", "", Task.SEGMENT, "x:Y", "", resident_bytes={"float32": GIB}, scratch_bytes={"float32": GIB}, devices=("cpu", "cuda"))
    for machine in MACHINES.values():
        assert all(r.precision == "float32" for r in ladder(spec, machine, budgets(machine)))


def test_a_precision_that_is_taken_only_by_wish() -> None:
    """And then on the processor alone, as OpenVINO's bfloat16, where the processor has it."""
    sizes = {"float32": GIB, "bfloat16": GIB}
    spec = ModelSpec("net", "1", Task.SEGMENT, "tests.net:Net", "", resident_bytes=sizes, insisted=("bfloat16",), devices=("cpu", "cuda"))
    laptop, card = MACHINES["Laptop, no GPU, 16 GB"], MACHINES["RTX 4090"]
    assert first(laptop, spec) == "float32 on cpu"
    assert first(laptop, spec, precision="bfloat16") == "float32 on cpu"
    assert first(replace(laptop, cpu=replace(laptop.cpu, architecture="avx512_bf16")), spec, precision="bfloat16") == "bfloat16 on cpu"
    assert first(card, spec) == first(card, spec, precision="bfloat16") == "float32 on cuda:0"


def test_a_spread_model_fills_the_first_card_first_and_leaves_room_for_its_work() -> None:
    machine, spec = MACHINES["Kaggle, 2 x T4"], MODELS["MedGemma 27B"]
    rung = ladder(spec, machine, budgets(machine), profile=choose(machine))[0]
    assert list(rung.shares) == ["cuda:0", "cuda:1"]
    assert rung.shares["cuda:0"] + rung.scratch == budgets(machine)["cuda:0"]
    assert rung.max_memory == dict(rung.shares)
    assert "needs" in rung.why
