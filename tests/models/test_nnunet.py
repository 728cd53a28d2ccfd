"""nnU-Net folders: the same answers as the library's own predictor, the truth on the phantom, and clear words for bad folders."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import _train_phantom_nnunet as trained
from isocenter.core.catalog import Entry
from isocenter.core.errors import CancelledError, ModelError, UnsupportedError, UsageError
from isocenter.core.geometry import Grid
from isocenter.core.model import ModelContext, ModelSpec, Run
from isocenter.core.phantom import phantom
from isocenter.core.settings import Settings
from isocenter.core.volume import Volume
from isocenter.models._nnunet import folder as _folder
from isocenter.models.nnunet import NNUNet, offer
from isocenter.service import Service
from tests.models import onnx_networks as nets

PHANTOM = Path(__file__).parent.parent / "data" / "phantom_nnunet"


def network_of(plans: dict[str, Any], heads: int, seed: int) -> Any:
    import torch
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(seed)
    design = plans["configurations"]["3d_fullres"]["architecture"]
    return get_network_from_plans(
        design["network_class_name"], design["arch_kwargs"], design["_kw_requires_import"], 1, heads, deep_supervision=False
    )


def write_folder(
    folder: Path,
    *,
    reader: str = "SimpleITKIO",
    transpose: tuple[int, int, int] = (0, 1, 2),
    dimensions: int = 3,
    regions: bool = False,
    residual: bool = False,
    folds: int = 1,
    mirrored: tuple[int, ...] | None = None,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """A random network as nnU-Net's trainer writes one, everything else that it pickles included."""
    import torch

    plans = trained.plans()
    plans |= {"image_reader_writer": reader, "transpose_forward": list(transpose), "transpose_backward": [int(i) for i in np.argsort(transpose)]}
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"patch_size": [12, 16, 16][-dimensions:], "spacing": [2.5, 1.5, 1.5][-dimensions:]}
    configuration |= {"normalization_schemes": ["ZScoreNormalization"]}
    kind = f"Conv{dimensions}d"
    network = configuration["architecture"]["arch_kwargs"]
    network |= {"n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3] * dimensions] * 2, "strides": [[1] * dimensions, [2] * dimensions]}
    network |= {"conv_op": f"torch.nn.modules.conv.{kind}", "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d"}
    network |= {"n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1]}
    if residual:
        network["n_blocks_per_stage"] = network.pop("n_conv_per_stage")
        configuration["architecture"]["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    labels: dict[str, Any] = {"background": 0, "Kidney right": 1, "kidney_left": 2, "liver": 3}
    dataset: dict[str, Any] = {"channel_names": {"0": "T1w"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    if regions:
        dataset |= {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}, "regions_class_order": [1, 2, 3]}
    if change is not None:
        change((plans, dataset))
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    for fold in range(folds):
        module = network_of(plans, 3 if regions else 4, fold)
        (folder / f"fold_{fold}").mkdir()
        state = {
            "network_weights": module.state_dict(),
            "optimizer_state": torch.optim.SGD(module.parameters(), 0.01, momentum=0.9).state_dict(),
            "grad_scaler_state": None,
            "logging": {"ema_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_end_timestamps": [1.5]},
            "_best_ema": np.float64(0.75),
            "current_epoch": 1000,
            "init_args": {"plans": plans, "configuration": "3d_fullres", "fold": fold, "device": torch.device("cuda")},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": mirrored,
        }
        torch.save(state, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def loaded(folder: Path, entry: Entry | None = None) -> NNUNet:
    model = NNUNet()
    model.load(ModelContext(spec=offer(folder, entry), threads=1))
    return model


def turned(degrees: float, axis: tuple[float, float, float] = (0.3, 0.2, 1)) -> NDArray[np.float64]:
    unit = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -unit[2], unit[1]], [unit[2], 0, -unit[0]], [-unit[1], unit[0], 0]])
    angle = np.deg2rad(degrees)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def grid(shape: tuple[int, int, int], spacing: tuple[float, float, float], direction: NDArray[np.float64]) -> Grid:
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = (3.0, -7.0, 11.0)
    return Grid.from_affine_lps(affine, shape)


GRIDS = {
    "as stored": grid((14, 24, 18), (1.5, 1.5, 2.5), np.eye(3)),
    "flipped, swapped, anisotropic": grid((22, 12, 26), (0.75, 5.0, 1.25), np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])),
    "oblique": grid((16, 20, 23), (1.25, 2.0, 2.25), turned(25) @ np.diag([-1.0, 1, -1])),
}


def noise(place: Grid, seed: int = 0) -> Volume:
    """Smooth noise with a border of zeros, which nnU-Net crops."""
    from scipy.ndimage import gaussian_filter

    array = 100 * gaussian_filter(np.random.default_rng(seed).standard_normal(place.shape), 1.0).astype(np.float32) + 30
    array[:2], array[:, -3:] = 0, 0
    return Volume.on_grid(array, place, modality="MR")


def by_library(folder: Path, volume: Volume, path: Path, **options: Any) -> NDArray[Any]:
    """The answer of nnU-Net's own reader, predictor and writer, from file to file."""
    import SimpleITK as sitk
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(np.ravel(volume.direction).tolist())
    source, target = path / "case_0000.nii.gz", path / "answer.nii.gz"
    sitk.WriteImage(image, str(source))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False, **options)
    predictor.initialize_from_trained_model_folder(str(folder), tuple(range(len(list(folder.glob("fold_*"))))))
    files = predictor.plans_manager.image_reader_writer_class()
    array, properties = files.read_images([str(source)])
    found = predictor.predict_single_npy_array(array, properties)
    files.write_seg(found, str(target), properties)
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(str(target))))


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "as stored"),
    "flips": ({"mirrored": (0, 1, 2), "reader": "NibabelIO"}, "oblique"),
    "reorients": ({"reader": "SimpleITKIOWithReorient", "transpose": (1, 2, 0)}, "flipped, swapped, anisotropic"),
    "reorients oblique": ({"reader": "NibabelIOWithReorient", "transpose": (2, 0, 1)}, "oblique"),
    "regions": ({"regions": True, "residual": True}, "flipped, swapped, anisotropic"),
    "slices": ({"dimensions": 2, "transpose": (0, 2, 1), "folds": 2}, "flipped, swapped, anisotropic"),
}


@pytest.mark.filterwarnings("ignore")  # the library's own
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_voxels_as_the_library(kind: str, tmp_path: Path) -> None:
    options, where = KINDS[kind]
    folder = write_folder(tmp_path / "model", **options)
    volume = noise(GRIDS[where])
    expected = by_library(folder, volume, tmp_path)
    answer = loaded(folder).segment(volume)
    assert len(np.unique(expected)) >= 3
    np.testing.assert_array_equal(answer.mask, expected)
    assert answer.mask.shape == volume.shape
    told = [note for note in answer.notes if "as stored" in note]
    assert bool(told) == ("Reorient" not in options.get("reader", "")), "the reader who must check left and right is told so"


def test_tiles_at_once_and_precision_change_little(tmp_path: Path) -> None:
    folder, volume = write_folder(tmp_path / "model"), noise(GRIDS["oblique"])
    model = loaded(folder)
    one = model.segment(volume).mask
    many = model.segment(volume, run=Run(batch=5)).mask
    assert np.mean(one == many) > 0.999
    model.load(ModelContext(spec=offer(folder), precision="bfloat16"))
    assert np.mean(one == model.segment(volume).mask) > 0.9
    model.close()
    with pytest.raises(ModelError, match="not loaded"):
        model.segment(volume)


def copies() -> dict[str, tuple[Volume, dict[str, NDArray[np.bool_]]]]:
    """The phantom as other scanners and programs would store it, each with its truth."""
    swapped = phantom((90, 56, 70), (5.4, 6.4, 4.2), seed=13, orientation="PIR", scale=0.95)
    thick = phantom((42, 120, 120), (3.2, 3.2, 9.0), seed=12, orientation="RAI", table=False)
    whole = phantom((80, 96, 96), seed=11, shift_mm=(8.0, -6.0, 10.0), scale=1.05)
    made = {"axes swapped, anisotropic": swapped, "flipped, thick slices": thick}
    found = {name: (p.volume, {label: p.masks[label] for label in trained.LABELS}) for name, p in made.items()}
    return found | {"oblique": resampled(whole, turned(18) @ np.diag([-1.0, 1, -1]))}


def resampled(made: Any, direction: NDArray[np.float64]) -> tuple[Volume, dict[str, NDArray[np.bool_]]]:
    """The phantom on a grid that lies askew in the patient, around the same middle."""
    import SimpleITK as sitk

    def image(array: NDArray[Any]) -> Any:
        made_image = sitk.GetImageFromArray(array)
        made_image.SetSpacing(made.volume.spacing)
        made_image.SetOrigin(made.volume.origin)
        return made_image

    shape, spacing = (70, 88, 88), (4.1, 4.3, 5.2)
    middle = made.volume.grid.affine_lps @ [*((np.array(made.volume.shape[::-1]) - 1) / 2), 1]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = middle[:3] - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    place = Grid.from_affine_lps(affine, shape)

    def turn(array: NDArray[Any], how: int, outside: float) -> NDArray[Any]:
        size = [int(n) for n in reversed(shape)]
        return np.asarray(
            sitk.GetArrayFromImage(
                sitk.Resample(image(array), size, sitk.Transform(), how, place.origin, spacing, np.ravel(place.direction).tolist(), outside)
            )
        )

    # Halfway between inside and outside, not the nearest voxel's: that alone would cost the spleen some hundredths.
    truth = {name: turn(made.masks[name].astype(np.float32), sitk.sitkLinear, 0) > 0.5 for name in trained.LABELS}
    return Volume.on_grid(turn(made.volume.array, sitk.sitkLinear, -1000), place, modality="CT", unit="HU"), truth


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("nnunet")
    (home / "models").mkdir()
    (home / "models" / PHANTOM.name).symlink_to(PHANTOM)
    made = Service(Settings(home=home))
    yield made
    made.close()


def test_the_truth_on_any_grid(service: Service) -> None:
    """A network that was trained on the phantom in RAS order tells a wrong frame, spacing, label or window at once."""
    scores: dict[str, dict[str, float]] = {}
    for name, (volume, truth) in copies().items():
        answer = service.label(volume, model=PHANTOM.name)
        scores[name] = {}
        for label in answer.labels:
            found = answer.mask == label.value
            scores[name][label.name] = float(2 * np.sum(found & truth[label.name]) / (found.sum() + truth[label.name].sum()))
    worst = {name: min(by.items(), key=lambda pair: pair[1]) for name, by in scores.items()}
    assert min(value for _, value in worst.values()) >= 0.9, scores


def test_words_by_its_labels(service: Service) -> None:
    """What it was trained on can be asked for by name, in any order of the words."""
    made = phantom((64, 80, 80), seed=3)
    left, liver = service.find(made.volume, ["left kidney", "the liver"], model=PHANTOM.name).findings
    for finding, name in ((left, "kidney_left"), (liver, "liver")):
        assert finding.label.name == name
        assert 2 * np.sum((finding.mask != 0) & made.masks[name]) / (np.sum(finding.mask != 0) + made.masks[name].sum()) > 0.9


def test_what_a_folder_says_of_itself(tmp_path: Path) -> None:
    spec = offer(PHANTOM)
    assert [label.name for label in spec.labels] == list(trained.LABELS)
    assert spec.modalities == ("CT",)
    assert spec.options["orientation"] == "RAS"
    assert spec.synonyms["right lung"] == "lung_right"
    assert spec.weights_sha256 is not None
    nested = write_folder(tmp_path / "unpacked" / "Dataset291_Organs" / "nnUNetTrainerNoMirroring__nnUNetPlans__3d_fullres")
    entry = Entry("totalsegmentator-organs", "nnunet", "Organs", "Apache-2.0", options={"orientation": "RAS", "mirror": False})
    spec = offer(nested.parent.parent, entry)
    assert (spec.id, spec.options["orientation"], spec.options["mirror"]) == ("totalsegmentator-organs", "RAS", False)
    assert [label.name for label in spec.labels] == ["kidney_right", "kidney_left", "liver"]
    assert loaded(nested.parent.parent, entry).segment(noise(GRIDS["oblique"])).notes == ()


def test_progress_and_cancel_between_tiles(tmp_path: Path) -> None:
    model, volume = loaded(write_folder(tmp_path / "model")), noise(GRIDS["as stored"])
    seen: list[tuple[float, str]] = []
    model.segment(volume, run=Run(lambda fraction, message: seen.append((fraction, message))))
    assert [f for f, _ in seen] == sorted(f for f, _ in seen)
    assert seen[-1][0] == 1.0
    assert sum("tile" in message for _, message in seen) > 3
    asked: list[int] = []

    def enough() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(CancelledError):
        model.segment(volume, run=Run(cancelled=enough))
    assert len(asked) == 4, "it goes on for no further tile"


def plans_with(key: str, value: Any) -> Callable[[Any], None]:
    def change(files: Any) -> None:
        plans, dataset = files
        configuration = plans["configurations"]["3d_fullres"]
        for part in (plans, configuration, configuration["architecture"], configuration["architecture"]["arch_kwargs"], dataset):
            if key in part:
                part[key] = value

    return change


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("preprocessor_name", "Popen", "preprocessor_name"),
        ("resampling_fn_data", "system", "resampling_fn_data"),
        ("transpose_forward", [1, 2, 0], "do not undo"),
        ("channel_names", {"0": "CT", "1": "PET"}, "2 images at once"),
        ("labels", {"background": 0, "a": 1, "b": 7}, "1, 2, 3"),
        ("image_reader_writer", 3, "as nnU-Net v2 writes it|image_reader_writer"),
        ("patch_size", [0, 3, 3], "positive"),
    ],
)
def test_plans_that_cannot_be_used(tmp_path: Path, key: str, value: Any, words: str) -> None:
    folder = write_folder(tmp_path / "model", change=None)
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("plans.json", "dataset.json"))
    plans_with(key, value)((plans, dataset))
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    with pytest.raises(ModelError, match=words):
        offer(folder)


@pytest.mark.parametrize(("key", "value"), [("network_class_name", "subprocess.Popen"), ("conv_op", "os.system")])
def test_plans_call_no_other_code(tmp_path: Path, key: str, value: str) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "plans.json").write_text((folder / "plans.json").read_text().replace(json_of(folder, key), json.dumps(value)))
    with pytest.raises(ModelError, match=f"as {key}"):
        offer(folder)


def json_of(folder: Path, key: str) -> str:
    architecture = json.loads((folder / "plans.json").read_text())["configurations"]["3d_fullres"]["architecture"]
    return json.dumps(architecture.get(key) or architecture["arch_kwargs"][key])


class Hostile:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_no_code_in_weights_is_run(tmp_path: Path) -> None:
    import torch

    folder, trace = write_folder(tmp_path / "model"), tmp_path / "ran"
    torch.save({"network_weights": {}, "trainer_name": Hostile(trace)}, folder / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(ModelError, match="without running code"):
        loaded(folder)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(pickle.dumps({"network_weights": Hostile(trace)}))
    with pytest.raises(ModelError, match="no file of weights"):
        offer(folder)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["pointer", "cut", "absent", "other", "nan"])
def test_bad_weights(tmp_path: Path, damage: str) -> None:
    import torch

    folder = write_folder(tmp_path / "model")
    path = folder / "fold_0" / "checkpoint_final.pth"
    if damage == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "absent":
        path.unlink()
    else:
        state = torch.load(path, weights_only=False)
        weights = state["network_weights"]
        for name in list(weights):
            weights[name] = weights[name] * np.nan if damage == "nan" else weights[name][..., :1]
        torch.save(state, path)
    words = {"pointer": "git lfs pull", "cut": "cut off", "absent": "holds no checkpoint", "other": "do not fit", "nan": "not finite"}[damage]
    with pytest.raises(ModelError, match=words) as caught:
        loaded(folder).segment(noise(GRIDS["as stored"]))
    assert str(tmp_path) not in caught.value.message


def test_input_and_options_that_it_does_not_take(tmp_path: Path) -> None:
    model = loaded(PHANTOM)
    volume = phantom((24, 24, 24)).volume
    with pytest.raises(UnsupportedError, match="trained on CT, the scan is MR"):
        model.segment(replace(volume, modality="MR"))
    broken = volume.array.astype(np.float32)
    broken[0, 0, 0] = np.nan
    with pytest.raises(UnsupportedError, match="finite"):
        model.segment(Volume(broken, volume.spacing, modality="CT"))
    for options, words in (
        ({"speed": 1}, "no option"),
        ({"step": 0}, "from 0.1"),
        ({"mirror": 1}, "true or false"),
        ({"orientation": "XYZ"}, "letters"),
    ):
        with pytest.raises(UsageError, match=words):
            model.segment(volume, options=options)
    empty = model.segment(Volume(np.zeros((4, 5, 6), np.int16), modality="CT"))
    assert not empty.mask.any()
    assert "nothing but zeros" in empty.notes[0]
    with pytest.raises(ModelError, match=r"no plans\.json"):
        offer(tmp_path)
    assert isinstance(offer(PHANTOM), ModelSpec)


def parts(folder: Path) -> Path:
    """Two networks of different structures, as the archives of one task unpack beside each other."""

    def named(*names: str) -> Callable[[Any], None]:
        def change(both: Any) -> None:
            both[1]["labels"] = {"background": 0} | {name: k for k, name in enumerate(names, start=1)}

        return change

    write_folder(folder / "Dataset001_organs" / "T__nnUNetPlans__3d_fullres", change=named("liver", "spleen", "kidney_left"))
    write_folder(folder / "Dataset002_bones" / "T__nnUNetPlans__3d_fullres", change=named("rib_1", "rib_2", "rib_3"), folds=2)
    return folder


def told(name: str, **options: Any) -> Entry:
    return Entry(name, "nnunet", "", "", options={"orientation": "RAS", **options})


def test_parts_of_one_answer_are_one_answer(tmp_path: Path) -> None:
    entry = told("total", parts=True)
    place = parts(tmp_path / "total")
    spec = offer(place, entry)
    names = ("liver", "spleen", "kidney_left", "rib_1", "rib_2", "rib_3")
    assert [(label.value, label.name) for label in spec.labels] == list(enumerate(names, start=1))
    single = [offer(place / name, told(name)) for name in sorted(p.name for p in place.iterdir())]
    assert spec.weights_bytes == sum(one.weights_bytes for one in single)
    assert spec.resident_bytes["float32"] == sum(one.resident_bytes["float32"] for one in single)
    volume = noise(GRIDS["flipped, swapped, anisotropic"])
    seen: list[tuple[float, str]] = []
    answer = loaded(place, entry).segment(volume, run=Run(lambda done, words: seen.append((done, words))))
    first, second = (loaded(place / one.id, told(one.id)).segment(volume).mask for one in single)
    assert first.any()
    assert second.any()
    # The later part has the voxels that both claim; its numbers go on where the first one's end.
    assert np.array_equal(answer.mask, np.where(second > 0, second + 3, first))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert any("part 2 of 2" in words for _, words in seen)


def test_networks_that_are_no_parts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="2 trained models"):
        offer(parts(tmp_path / "several"))
    same = tmp_path / "same"
    for name in ("Dataset001_a", "Dataset002_b"):
        write_folder(same / name / "T__nnUNetPlans__3d_fullres")
    with pytest.raises(ModelError, match="name the same structure"):
        offer(same, told("same", parts=True))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="there are none"):
        offer(tmp_path / "empty", told("empty", parts=True))


def test_the_publishers_own_names_count(tmp_path: Path) -> None:
    """TotalSegmentator names its structures by a table of its own and not by the folder, so the catalog's table counts here too."""
    place = write_folder(tmp_path / "model")
    entry = replace(told("named"), labels=("kidney_right", "kidney_left", "Liver_all"))
    spec = offer(place, entry)
    assert [(label.value, label.name) for label in spec.labels] == [(1, "kidney_right"), (2, "kidney_left"), (3, "liver_all")]
    assert spec.synonyms["liver"] == "liver_all"
    assert loaded(place, entry).segment(noise(GRIDS["as stored"])).labels == spec.labels
    fewer = offer(place, replace(entry, labels=("kidneys", "liver")))
    assert [label.name for label in fewer.labels] == ["kidney_right", "kidney_left", "liver"], "a table of other weights is not taken"


def test_the_folders_name_says_which_configuration_was_trained(tmp_path: Path) -> None:
    def twice(both: Any) -> None:
        configurations = both[0]["configurations"]
        configurations["3d_fullres_high"] = {"inherits_from": "3d_fullres", "patch_size": [16, 16, 16]}

    high = write_folder(tmp_path / "a" / "T__nnUNetPlans__3d_fullres_high", change=twice)
    usual = write_folder(tmp_path / "b" / "model", change=twice)
    for place, options, tile in ((high, {"configuration": "3d_fullres"}, 16), (usual, {"configuration": "3d_fullres_high"}, 16), (usual, {}, 12)):
        assert _folder.read(place, options).configuration["patch_size"][0] == tile


@pytest.mark.filterwarnings("ignore")  # of the exporter, about its successor and about instance normalisation
def test_an_export_of_nnunets_2d_answers_as_nnunet(tmp_path: Path) -> None:
    """One window a slice, so that only what both do in the same way is compared: turning, intensities, spacing, mirroring."""
    import torch

    theirs = loaded(write_folder(tmp_path / "nnunet", dimensions=2, mirrored=(0, 1)))
    (network,) = theirs._networks
    names = {"input_names": ["image"], "output_names": ["scores"], "dynamic_axes": {"image": {0: "n"}, "scores": {0: "n"}}}
    torch.onnx.export(network.module.eval(), torch.zeros(1, 1, 16, 16), str(tmp_path / "2d.onnx"), dynamo=False, **names)
    parameters = {"patch_size": [16, 16], "spacing": [1.5, 1.5], "normalization_schemes": ["ZScoreNormalization"], "use_tta": True}
    settings = {"model_type": "nnunet", "model_parameters": parameters, "dataset_parameters": {"num_classes": 4, "modality": "MR"}}
    ours = nets.loaded(tmp_path / "onnx", (tmp_path / "2d.onnx").read_bytes(), settings)
    swapped = np.array([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])
    places = {
        "the network's spacing": (grid((6, 19, 16), (1.5, 1.5, 5.0), np.eye(3)), 0.999),
        "another": (grid((30, 20, 22), (1.0, 1.2, 5.0), np.eye(3)), 0.99),
        "another, stored otherwise": (grid((24, 30, 20), (1.2, 5.0, 1.0), swapped), 0.99),
    }
    for name, (place, least) in places.items():
        scan = noise(place)
        expected = theirs.segment(scan, options={"orientation": "LPS"}).mask
        assert len(np.unique(expected)) >= 3
        assert np.mean(ours.segment(scan, run=Run(batch=4)).mask == expected) > least, name
    ours.close()
