"""A generated report against a reference: overlap of words by kept libraries, and a check of what a wrong word would cost.

The check (see `clinical_check`) is there to point a reader at a place, not to pass a report.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from isocenter.analysis.clinical_check import clinical


def overlap(candidate: str, reference: str) -> dict[str, float]:
    """ROUGE-L F (0..1), BLEU and chrF (0..100). Raises `ImportError` without the libraries that define them."""
    import sacrebleu
    from rouge_score import rouge_scorer

    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False).score(reference, candidate)["rougeL"].fmeasure
    return {
        "rouge_l": float(rouge),
        "bleu": float(sacrebleu.sentence_bleu(candidate, [reference]).score),
        "chrf": float(sacrebleu.sentence_chrf(candidate, [reference]).score),
    }


def compare(candidate: str, reference: str) -> dict[str, Any]:
    """All of the above for one pair, as plain data; a metric whose library is missing is null, with the reason."""
    differences = [asdict(d) for d in clinical(candidate, reference)]
    result: dict[str, Any] = {"rouge_l": None, "bleu": None, "chrf": None, "clinical": {"agree": not differences, "differences": differences}}
    try:
        result.update(overlap(candidate, reference))
    except ImportError:
        result["reason"] = "ROUGE, BLEU and chrF need: pip install 'isocenter[reports]'"
    return result
