"""SAM 3's detector on a scan: words in, masks and probabilities out, every slice searched by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from isocenter.core import terminology
from isocenter.core.errors import LimitError, ModelError, PromptError
from isocenter.core.model import Finding, ModelContext, Question, Run
from isocenter.core.volume import Volume
from isocenter.models._sam import folder as installed
from isocenter.models._sam import frame, network, windows
from isocenter.models._sam.frame import Frame, Recipe
from isocenter.models._sam.load import HALF, side
from isocenter.models._sam.network import Network
from isocenter.models._sam.still import window_of
from isocenter.models._sam.windows import Window

#: Tokens that the text encoder was trained with.
TOKENS = 32
#: What a detection's score (of the query, times that of the concept's presence) must exceed for its mask to count.
SURE = 0.5
#: Detections whose masks are resized at once; bounds the memory beside the result.
_AT_ONCE = 16


@dataclass(frozen=True)
class Asked:
    """Words as the network knows them: features (1, tokens, size) and which tokens are words."""

    features: Any
    mask: Any


@dataclass(frozen=True)
class Finder:
    """A loaded detector. window: fixed, or None; batch: slices at once."""

    network: Network
    recipe: Recipe
    tokenizer: Any
    window: Window | None
    batch: int

    def find(self, volume: Volume, prompts: Sequence[str], threshold: float, run: Run) -> list[Finding]:
        """One finding a prompt. Raises `PromptError` for words that are none, `LimitError` for too many of them."""
        asked = [self._ask(prompt) for prompt in prompts]
        window = windows.choose(volume, (), self.window)
        answer = _Answer(Question(volume, tuple(prompts), threshold), window)
        depth, step = volume.shape[0], run.batch or self.batch
        for start in range(0, depth, step):
            run.check(start / depth, f"slice {start + 1} of {depth}")
            part = range(start, min(start + step, depth))
            for z, seen in zip(part, self._look([(answer, z) for z in part], [asked] * len(part)), strict=True):
                answer.put(z, seen)
        return answer.findings()

    def find_pictures(self, questions: Sequence[Question], run: Run) -> list[list[Finding]]:
        """For each picture what `find` says of it alone."""
        asked = [[self._ask(prompt) for prompt in question.prompts] for question in questions]
        answers = [_Answer(question, windows.choose(question.volume, (), self.window)) for question in questions]
        step = run.batch or self.batch
        for start in range(0, len(answers), step):
            run.check(start / len(answers), f"picture {start + 1} of {len(answers)}")
            part = answers[start : start + step]
            for answer, seen in zip(part, self._look([(answer, 0) for answer in part], asked[start : start + step]), strict=True):
                answer.put(0, seen)
        return [answer.findings() for answer in answers]

    def _look(self, shown: Sequence[tuple[_Answer, int]], asked: Sequence[Sequence[Asked]]) -> list[list[tuple[NDArray[np.float32], float]]]:
        """For each slice shown, and each of the words asked of it: the probability (rows, columns) and the best score."""
        squares = [self.recipe.frame(answer.plane, answer.spacing) for answer, _ in shown]
        greys = [windows.to_grey(answer.question.volume.voxels[z], answer.window) for answer, z in shown]
        pixels = torch.stack([self.recipe.pixels(grey, square) for grey, square in zip(greys, squares, strict=True)])
        found: list[list[tuple[NDArray[np.float32], float]]] = [[] for _ in shown]
        with self.network.running() as module:
            seen = module.get_vision_features(pixels.to(self.network.device))
            for turn in range(max(len(words) for words in asked)):
                # Where fewer words are asked, the last ones are said again and not listened to.
                out = self._detect(module, seen, [words[min(turn, len(words) - 1)] for words in asked])
                for row, words in enumerate(asked):
                    if turn < len(words):
                        found[row].append(_probability(out, row, squares[row]))
        return found

    def _ask(self, prompt: str) -> Asked:
        words = prompt.strip()
        if not words:
            raise PromptError("an empty prompt names nothing; say what to look for")
        if len(self.tokenizer(words, truncation=False)["input_ids"]) > TOKENS:
            raise LimitError(
                "the prompt is longer than the network reads, in tokens; name the structure in a few words", limit="tokens", value=TOKENS
            )
        tokens = self.tokenizer(words, return_tensors="pt", padding="max_length", max_length=TOKENS)
        mask = tokens["attention_mask"].to(self.network.device)
        with self.network.running() as module:
            features = module.get_text_features(tokens["input_ids"].to(self.network.device), mask, return_dict=True).pooler_output
        return Asked(features, mask)

    def _detect(self, module: Any, seen: Any, words: Sequence[Asked]) -> Any:
        """The network's output for slices that were seen, each asked for the words of its own row."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        said = BaseModelOutputWithPooling(pooler_output=torch.cat([w.features for w in words]))
        out = module(vision_embeds=seen, text_embeds=said, attention_mask=torch.cat([w.mask for w in words]))
        network.finite(out.pred_masks)
        network.finite(out.pred_logits)
        return out

    def close(self) -> None:
        """Give the memory back."""
        self.network.close()


class _Answer:
    """The answer to a question, as it grows slice by slice."""

    def __init__(self, question: Question, window: Window) -> None:
        volume = question.volume
        self.question = question
        self.window = window
        self.plane = (volume.shape[1], volume.shape[2])
        self.spacing = (volume.spacing_zyx[1], volume.spacing_zyx[2])
        self._probabilities = [np.zeros(volume.shape, np.uint8) for _ in question.prompts]
        self._masks = [np.zeros(volume.shape, np.uint8) for _ in question.prompts]
        self._presence = [0.0 for _ in question.prompts]

    def put(self, z: int, seen: Sequence[tuple[NDArray[np.float32], float]]) -> None:
        """Take in what was seen on slice z, for each prompt."""
        for index, (probability, score) in enumerate(seen):
            self._presence[index] = max(self._presence[index], score)
            self._masks[index][z] = probability > self.question.threshold
            self._probabilities[index][z] = np.floor(probability * 255)

    def findings(self) -> list[Finding]:
        """One a prompt."""
        unit = self.question.volume.unit
        note = f"shown to the network from {self.window.lo:g} to {self.window.hi:g} {unit}; each slice was searched by itself"
        return [
            Finding(prompt, terminology.label(prompt.strip().lower()), mask, probability, score, (note,))
            for prompt, mask, probability, score in zip(self.question.prompts, self._masks, self._probabilities, self._presence, strict=True)
        ]


def _probability(out: Any, row: int, square: Frame) -> tuple[NDArray[np.float32], float]:
    """One slice: the highest probability (rows, columns) of any detection that is sure enough, and the best score of any."""
    scores = out.pred_logits[row].float().sigmoid()
    if out.presence_logits is not None:
        scores = scores * network.finite(out.presence_logits[row].float()).sigmoid()
    kept = out.pred_masks[row][scores > SURE].float().sigmoid()
    best = np.zeros(square.shape, np.float32)
    for start in range(0, len(kept), _AT_ONCE):
        best = np.maximum(best, square.restore(kept[start : start + _AT_ONCE]).amax(0).cpu().numpy())
    return best, float(scores.max())


def load(context: ModelContext) -> Finder:
    """SAM 3's detector from the context's folder. Raises `ModelError`."""
    from transformers import AutoTokenizer, Sam3Config, Sam3Model, Sam3VideoConfig

    folder = context.weights
    video = installed.read_json(folder / "config.json").get("model_type") == "sam3_video"
    config = network.configured(Sam3VideoConfig, folder).detector_config if video else network.configured(Sam3Config, folder)
    vision = config.vision_config
    recipe = frame.recipe(frame.said_by(folder), side(vision), stretch=True, mean=HALF, std=HALF)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library names its own
        raise ModelError(f"the model's tokenizer cannot be read ({type(error).__name__}); download the model again") from None
    options = context.spec.options if context.spec else {}
    slices = installed.batch(installed.vit_bytes(vision.backbone_config.to_dict()), context.precision)
    return Finder(network.build(Sam3Model, config, folder, context), recipe, tokenizer, window_of(options.get("window")), slices)
