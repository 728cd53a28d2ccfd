"""The network of a checkpoint folder and what the library's sessions share, read without running code in the weights."""

from __future__ import annotations

from typing import Any

import torch
from nnInteractive.inference import inference_session
from nnInteractive.inference.inference_session import nnInteractiveInferenceSession
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from isocenter.core.errors import ModelError
from isocenter.core.model import ModelContext
from isocenter.models._nnunet import folder as _folder
from isocenter.models._nnunet.network import fill, make, quiet, read_checkpoint

# The library prints what it does at every click; the log is not the place for it.
inference_session.print = lambda *_, **__: None

#: Above this, a session's prompts are kept compressed: seven half-precision numbers a voxel.
DENSE_VOXELS = 1 << 24


class Loaded:
    """What all sessions of one folder share. `session` makes the library's object for one scan."""

    def __init__(self, context: ModelContext) -> None:
        folder = _folder.find(context.weights)
        (checkpoint,) = _folder.checkpoints(folder, None)[:1]
        self.key = str(folder)
        self.device = torch.device(context.device)
        self.threads = max(1, context.threads)
        with quiet():
            self.artifacts = self._artifacts(folder, checkpoint)

    def _artifacts(self, folder: Any, checkpoint: Any) -> dict[str, Any]:
        """As `nnInteractiveInferenceSession.initialize_from_loaded_artifacts` takes them."""
        plans, dataset = _folder.read_json(folder / "plans.json"), _folder.read_json(folder / "dataset.json")
        state, facts = read_checkpoint(checkpoint)
        session = self._new()
        try:
            capability, radius, thickness, decay, padding = session._load_capability_and_runtime_defaults(str(folder))
            session._apply_capability(capability)
            name = str(facts.get("configuration"))
            _folder.check_network(_folder.inherited(plans["configurations"], name))
            configuration = PlansManager(plans).get_configuration(name)
            channels = len(dataset.get("channel_names") or dataset["modality"])
            interactions = int(session.num_interaction_channels)
            point = inference_session.PointInteraction_stub(radius, True)
        except ModelError:
            raise
        except Exception:  # foreign JSON, read by the library
            raise ModelError(
                "its plans.json, dataset.json or inference metadata is not as nnInteractive writes it, or needs a newer nnInteractive"
            ) from None
        if channels != 1 or not 1 <= interactions <= 64 or padding != "constant":
            raise ModelError("this checkpoint needs several images, or a padding, that are not supported here")
        # Always two: the structure and what is not. dataset.json may list thousands of structures it learnt from.
        module = make(configuration, channels + interactions, 2)
        fill(module, state, str(facts.get("trainer_name", "")))
        module.eval().requires_grad_(False).to(self.device)
        module.register_forward_hook(_finite)
        return {
            "capability_content": capability,
            "point_interaction": point,
            "preferred_scribble_thickness": thickness,
            "interaction_decay": decay,
            "pad_mode_data": padding,
            "network": module,
            "plans_manager": PlansManager(plans),
            "configuration_manager": configuration,
            "dataset_json": dataset,
            "trainer_name": str(facts.get("trainer_name", "")),
            "label_manager": None,
            "license": None,
        }

    def _new(self, voxels: int = 0) -> Any:
        return nnInteractiveInferenceSession(
            device=self.device, torch_n_threads=self.threads, interactions_storage="blosc2" if voxels > DENSE_VOXELS else "tensor", enable_undo=True
        )

    def session(self, voxels: int) -> Any:
        """A session of the library without an image."""
        made = self._new(voxels)
        made.initialize_from_loaded_artifacts(self.artifacts)
        return made


def _finite(module: Any, inputs: Any, output: torch.Tensor) -> None:
    """Refuse to draw a mask by numbers that are none: the largest of them would be taken all the same."""
    if not bool(torch.isfinite(output).all()):
        raise ModelError("the network answered with values that are not finite numbers; its weights are broken or do not suit this scan")


#: The folders that are loaded. A person's work outlives the eviction of its model and goes on with the next one.
_CURRENT: dict[str, Loaded] = {}


def install(loaded: Loaded) -> None:
    """Make this the one that sessions of its folder go on with."""
    _CURRENT[loaded.key] = loaded


def remove(loaded: Loaded) -> None:
    """Sessions hold no network any more."""
    if _CURRENT.get(loaded.key) is loaded:
        del _CURRENT[loaded.key]


def current(key: str) -> Loaded:
    """Raises `ModelError` when the folder's model is not loaded."""
    try:
        return _CURRENT[key]
    except KeyError:
        raise ModelError("the model is not loaded") from None
