"""Entries against families: tiny networks in the layout of the published repositories are pulled by the catalog's own entries.

The file names are those that the publishers use; the networks are random. An entry that fetched too little, or under a name
that its family does not look for, would show here.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from isocenter.core.catalog import File
from isocenter.core.errors import ModelError, UsageError
from isocenter.core.model import ModelContext, Task
from isocenter.models import catalog, registry
from isocenter.models._catalog import pull, sources
from isocenter.models._catalog.add import add
from isocenter.models.registry import Registry
from tests.io.hub import Hub, serving
from tests.models import sam_networks
from tests.models.test_medgemma import multimodal, plain  # noqa: F401 - fixtures
from tests.models.test_medsiglip import folder as siglip  # noqa: F401 - a fixture
from tests.models.test_sam import _SAM_NAMES, first_names

pytest.importorskip("torch", reason="needs torch")


def nnunet_folder(folder: Path) -> Path:
    """A small random nnU-Net, as its trainer writes one."""
    made: Path = pytest.importorskip("tests.models.test_nnunet").write_folder(folder)
    return made


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture
def installed(hub: Hub, tmp_path: Path) -> Callable[..., Registry]:
    """`installed(name, folder, renamed)`: pull an entry from a hub that holds the folder's files, under the publisher's names."""

    def make(name: str, folder: Path, *, renamed: dict[str, str] | None = None, without: tuple[str, ...] = ()) -> Registry:
        entry = catalog.entry(name)
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        files = {(renamed or {}).get(path, path): data for path, data in files.items() if path not in without}
        hub.repository(entry.repository, files, revision=entry.revision)
        done = pull.pull(entry, tmp_path / "models", sources.choose(entry, endpoint=hub.url), accept=True)
        assert done.reason == ""
        here = Registry([tmp_path / "models"])
        assert here.broken == {}
        for spec in here.specs.values():
            if spec.weights is not None:
                model = registry.create(spec)
                model.load(ModelContext(spec=spec))
                model.close()
        return here

    return make


def test_sam2(installed: Callable[..., Registry], tmp_path: Path) -> None:
    here = installed("sam2.1_hiera_tiny", sam_networks.save(sam_networks.build("sam2_video"), tmp_path / "made"))
    assert here.spec("sam2.1_hiera_tiny").task is Task.INTERACTIVE


def test_sam3(installed: Callable[..., Registry], tmp_path: Path) -> None:
    made = sam_networks.save(sam_networks.build("sam3"), tmp_path / "made")
    # The published repository describes its pictures in this file alone.
    (made / "processor_config.json").write_text(json.dumps({"image_processor": json.loads((made / "preprocessor_config.json").read_text())}))
    here = installed("sam3", made, without=("preprocessor_config.json",))
    tasks = {spec.task for spec in here.specs.values() if spec.id.startswith("sam3")}
    assert {Task.INTERACTIVE, Task.TEXT} <= tasks


def test_medsam(installed: Callable[..., Registry], tmp_path: Path) -> None:
    here = installed("medsam", sam_networks.save(sam_networks.build("sam"), tmp_path / "made"))
    assert here.spec("medsam").options["medsam"] is True


def test_medsiglip(installed: Callable[..., Registry], siglip: Path) -> None:  # noqa: F811
    assert installed("medsiglip", siglip).spec("medsiglip").task is Task.DESCRIBE


def test_medgemma(installed: Callable[..., Registry], multimodal: Path) -> None:  # noqa: F811
    assert "picture" in installed("medgemma-1.5-4b", multimodal).spec("medgemma-1.5-4b").prompts


def test_medgemma_of_words_alone(installed: Callable[..., Registry], plain: Path) -> None:  # noqa: F811
    assert installed("medgemma-27b", plain).spec("medgemma-27b").prompts == ("text",)


def test_an_nnunet_that_is_published_file_by_file(installed: Callable[..., Registry], tmp_path: Path) -> None:
    made = nnunet_folder(tmp_path / "made")
    names = {"plans.json": "nnUNetPlans.json", "fold_0/checkpoint_final.pth": "checkpoint_best.pth"}
    here = installed("nnunet_lung", made, renamed=names)
    assert "liver" in [label.name for label in here.spec("nnunet_lung").labels]


def test_an_archive_of_totalsegmentator(hub: Hub, tmp_path: Path) -> None:
    made = nnunet_folder(tmp_path / "made")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in made.rglob("*"):
            if path.is_file():
                archive.write(path, f"Dataset297_Total/nnUNetTrainer__nnUNetPlans__3d_fullres/{path.relative_to(made).as_posix()}")
    hub.files["/weights.zip"] = packed.getvalue()
    entry = catalog.entry("totalseg_fast")
    (file,) = entry.files
    entry = replace(entry, files=(File(file.name, f"{hub.url}/weights.zip", unpack=True),))
    assert pull.pull(entry, tmp_path / "models", sources.choose(entry)).reason == ""
    spec = Registry([tmp_path / "models"]).spec("totalseg_fast")
    assert spec.options["orientation"] == "RAS"
    model = registry.create(spec)
    model.load(ModelContext(spec=spec))
    model.close()


def test_a_text_encoder_that_is_published_as_a_pickle(hub: Hub, tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import DebertaConfig, DebertaModel

    made = tmp_path / "made"
    made.mkdir()
    small = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = DebertaConfig(**small, relative_attention=True, pos_att_type=["c2p", "p2c"], max_position_embeddings=64)
    config.save_pretrained(made)
    torch.save({f"deberta.{name}": tensor for name, tensor in DebertaModel(config).state_dict().items()}, made / "pytorch_model.bin")
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    words.train_from_iterator(["no effusion"], trainers.BpeTrainer(special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    words.model.save(str(made))
    (made / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "gpt2"}))
    entry = catalog.entry("deberta-xlarge-mnli")
    hub.repository(entry.repository, {p.name: p.read_bytes() for p in made.iterdir()}, revision=entry.revision)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin has the hash"):  # these are not the published weights
        pull.pull(entry, tmp_path / "models", sources.choose(entry, endpoint=hub.url))
    entry = replace(entry, files=tuple(replace(file, sha256=None) for file in entry.files))
    done = pull.pull(entry, tmp_path / "models", sources.choose(entry, endpoint=hub.url))
    assert done.reason == ""
    assert not (done.folder / "pytorch_model.bin").exists()
    from isocenter.models.text import TextEncoder

    encoder = TextEncoder(done.folder)
    encoder.load(ModelContext())
    assert encoder.layers == 2
    encoder.close()


def test_a_checkpoint_as_first_published_is_converted(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(1)
    made = transformers.SamModel(sam_networks.sam_config(heads=8)).state_dict()
    published = first_names({name: tensor for name, tensor in made.items() if not name.startswith("shared_image")}, _SAM_NAMES)
    torch.save(published, tmp_path / "medsam_vit_b.pth")
    add(tmp_path / "medsam_vit_b.pth", tmp_path / "models", family="sam", name="mine")
    assert Registry([tmp_path / "models"]).spec("mine").options["medsam"] is True  # told by the file's name, which is gone
    with pytest.raises(UsageError, match="--family"):
        add(tmp_path / "medsam_vit_b.pth", tmp_path / "models", family="tissue", name="other")
    with pytest.raises(UsageError, match="--family"):
        add(tmp_path / "medsam_vit_b.pth", tmp_path / "models", name="other")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "medsam_vit_b.pth").read_bytes()[:5000])
    with pytest.raises(ModelError):
        add(tmp_path / "cut.pth", tmp_path / "models", family="sam")
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["mine"]
