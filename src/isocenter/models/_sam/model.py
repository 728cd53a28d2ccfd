"""What the interactive models of the SAM family have in common: weights read once, features kept with a volume, sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from isocenter.core.errors import ModelError
from isocenter.core.model import QUIET, ModelContext, Run
from isocenter.core.prompts import Prompt
from isocenter.core.volume import Volume

if TYPE_CHECKING:
    from isocenter.models._sam.features import Prepared
    from isocenter.models._sam.session import SliceSession
    from isocenter.models._sam.still import Still
    from isocenter.models._sam.video import Tracker


class SliceModel:
    """An interactive model; what it knows of a volume lies in `Prepared`, what a person said in the session."""

    def __init__(self) -> None:
        self._net: Tracker | Still | None = None

    def _read(self, context: ModelContext) -> Tracker | Still:
        """The network from the context's folder; transformers may be imported here."""
        raise NotImplementedError

    def load(self, context: ModelContext) -> None:
        """Read the weights. Raises `ModelError`."""
        from isocenter.models import _hf

        with _hf.library():
            self._net = self._read(context)

    def prepare(self, volume: Volume) -> Prepared:
        """An empty store of the slices' features: each is computed when a prompt, or following one, needs it."""
        from isocenter.models._sam.features import Prepared

        return Prepared(volume)

    def look(self, wanted: Sequence[tuple[Prepared, Sequence[Prompt]]], *, run: Run = QUIET) -> None:
        """Compute the features of the slices that prompts point at, several volumes' slices at once."""
        from isocenter.models._sam import ahead

        if self._net is None:
            raise ModelError("the model is not loaded")
        ahead.look(self._net, wanted, run)

    def begin(self, prepared: Prepared) -> SliceSession:
        """An empty mask on the volume, ready for prompts."""
        if self._net is None:
            raise ModelError("the model is not loaded")
        return self._net.begin(prepared)

    def close(self) -> None:
        """Give the memory back; sessions go on with the network that is loaded next."""
        if self._net is not None:
            self._net.close()
            self._net = None
