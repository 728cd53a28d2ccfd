"""Encoders of the BERT family as ONNX graphs: BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA, DistilBERT, MPNet.

They differ in the names of their tensors, in where positions start, and MPNet in a bias by relative position that all layers share.

With ONNX Runtime's operators the layers work on the tokens of all texts in one row, without the padding, which only attention
sees (Zhai et al., ByteTransformer, IPDPS 2023): texts of different lengths then share a batch at almost no cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from isocenter.models._text.graph import MICROSOFT, Graph
from isocenter.models._text.weights import Array, Weights

#: Positions of these start behind the padding token's id.
_SHIFTED = {"roberta", "xlm-roberta", "camembert", "mpnet"}
FAMILY = {"bert", "electra", "distilbert", *_SHIFTED}
_MASKED = -10000.0  # added to a masked score; its exponential is 0 in float32


@dataclass(frozen=True)
class Names:
    """Where a layer's tensors are, below the layer's own prefix."""

    layer: str = "encoder.layer."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    out: str = "attention.output.dense"
    out_norm: str = "attention.output.LayerNorm"
    up: str = "intermediate.dense"
    down: str = "output.dense"
    down_norm: str = "output.LayerNorm"


_NAMES = {
    "distilbert": Names(
        "transformer.layer.",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
    "mpnet": Names(
        query="attention.attn.q", key="attention.attn.k", value="attention.attn.v", out="attention.attn.o", out_norm="attention.LayerNorm"
    ),
}


def depth(config: Mapping[str, Any]) -> int:
    """How many layers there are."""
    return int(config.get("num_hidden_layers") or config["n_layers"])


def first_position(config: Mapping[str, Any]) -> int:
    """The position of the first token."""
    return int(config.get("pad_token_id", 1)) + 1 if config["model_type"] in _SHIFTED else 0


def build(graph: Graph, config: Mapping[str, Any], weights: Weights, layers: int) -> str:
    """The hidden states (batch, tokens, hidden) behind the first `layers` layers."""
    ids, mask = graph.input("ids", ("batch", "tokens")), graph.input("mask", ("batch", "tokens"))
    names = _NAMES.get(config["model_type"], Names())
    heads = int(config.get("num_attention_heads") or config["n_heads"])
    epsilon = float(config.get("layer_norm_eps", 1e-12))
    activation = str(config.get("hidden_act") or config.get("activation", "gelu"))
    packed = _Packed(graph, mask) if packs(graph) else None
    attention = _Attention(graph, mask, heads, _relative_bias(graph, ids, weights), packed)
    x = _embeddings(graph, ids, config, weights, epsilon, packed)
    for index in range(layers):
        at = f"{names.layer}{index}."
        parts = [weights.linear(at + n) for n in (names.query, names.key, names.value)]
        context = attention.context(x, parts)
        x = graph.add_and_normalise(context, weights.linear(at + names.out), x, norm(weights, at + names.out_norm), epsilon)
        wide = graph.activate(x, weights.linear(at + names.up), activation)
        x = graph.add_and_normalise(wide, weights.linear(at + names.down), x, norm(weights, at + names.down_norm), epsilon)
    return packed.pad(x) if packed else x


def packs(graph: Graph) -> bool:
    """Whether padding is left out. int8 attention here and other engines' graphs have it all the way."""
    return graph.fused and not graph.int8


class _Packed:
    """The tokens of all texts in one row. Padding is at the texts' ends, and no text is empty."""

    def __init__(self, graph: Graph, mask: str) -> None:
        self._graph = graph
        row = graph.op("Reshape", mask, graph.ints(-1))
        #: Where each token stands in the padded row (batch * tokens).
        self._places = graph.op("Reshape", graph.op("NonZero", row), graph.ints(-1))
        self.positions = graph.op("Mod", self._places, tokens(graph, mask))
        # For padding the token before it: something has to stand there.
        nearest = graph.op("Sub", graph.op("CumSum", row, graph.constant(np.array(0, np.int64))), graph.constant(np.array(1, np.int64)))
        self._nearest = graph.op("Reshape", nearest, graph.op("Shape", mask))

    def pack(self, x: str, *last: int) -> str:
        """(batch, tokens, *last) to (all tokens, *last)."""
        graph = self._graph
        return graph.op("Gather", graph.op("Reshape", x, graph.ints(-1, *last)), self._places)

    def pad(self, x: str) -> str:
        """(all tokens, size) to (batch, tokens, size)."""
        return self._graph.op("Gather", x, self._nearest)


def norm(weights: Weights, name: str) -> tuple[Array, Array]:
    """A normalisation's scale and shift."""
    return weights.get(f"{name}.weight"), weights.get(f"{name}.bias")


def tokens(graph: Graph, ids: str) -> str:
    """The length of the longest text, as a vector of one."""
    return graph.op("Shape", ids, start=1, end=2)


def _embeddings(graph: Graph, ids: str, config: Mapping[str, Any], weights: Weights, epsilon: float, packed: _Packed | None) -> str:
    positions = weights.get("embeddings.position_embeddings.weight")[first_position(config) :]
    # All tokens are of the first segment, so its vector can be added ahead.
    if weights.has("embeddings.token_type_embeddings.weight"):
        positions = positions + weights.get("embeddings.token_type_embeddings.weight")[0]
    words = graph.op("Gather", graph.constant(weights.get("embeddings.word_embeddings.weight")), packed.pack(ids) if packed else ids)
    if packed:
        placed = graph.op("Gather", graph.constant(positions), packed.positions)
    else:
        placed = graph.op("Slice", graph.constant(positions), graph.ints(0), tokens(graph, ids), graph.ints(0))
    x = graph.normalise(graph.op("Add", words, placed), *norm(weights, "embeddings.LayerNorm"), epsilon)
    return graph.linear(x, *weights.linear("embeddings_project")) if weights.has("embeddings_project.weight") else x


def _relative_bias(graph: Graph, ids: str, weights: Weights) -> str | None:
    """MPNet's bias (1, heads, tokens, tokens) by relative position; None for the others."""
    if not weights.has("encoder.relative_attention_bias.weight"):
        return None
    table = weights.get("encoder.relative_attention_bias.weight")  # (buckets, heads)
    size = len(weights.get("embeddings.position_embeddings.weight"))
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    half = len(table) // 2
    exact = half // 2
    far = np.abs(distance)
    with np.errstate(divide="ignore"):
        logarithmic = exact + np.log(far.astype(np.float32) / exact) / math.log(128 / exact) * (half - exact)
    bucket = np.where(far < exact, far, np.minimum(np.maximum(logarithmic, 0).astype(np.int64), half - 1)) + np.where(distance < 0, half, 0)
    # Gathered once per batch from the small table of buckets, cut to the batch's length.
    length = tokens(graph, ids)
    ends = graph.op("Concat", length, length, axis=0)
    cut = graph.op("Slice", graph.constant(bucket.astype(np.int64)), graph.ints(0, 0), ends, graph.ints(0, 1))
    gathered = graph.op("Gather", graph.constant(table), cut)  # (tokens, tokens, heads)
    return graph.op("Unsqueeze", graph.op("Transpose", gathered, perm=[2, 0, 1]), graph.ints(0))


class _Attention:
    """Attention of every layer, over one mask."""

    def __init__(self, graph: Graph, mask: str, heads: int, bias: str | None, packed: _Packed | None) -> None:
        from onnx import TensorProto

        self._graph = graph
        self._heads = heads
        self._bias = bias
        self._packed = packed
        if packed:
            self._mask = graph.op("Cast", mask, to=TensorProto.INT32)
            return
        hidden = graph.op("Sub", graph.scalar(1.0), graph.op("Cast", mask, to=TensorProto.FLOAT))
        scores = graph.op("Unsqueeze", graph.op("Mul", hidden, graph.scalar(_MASKED)), graph.ints(1, 2))
        self._mask = scores if bias is None else graph.op("Add", scores, bias)

    def context(self, x: str, parts: list[tuple[Array, Array]]) -> str:
        """What each token gathers from the others. parts: the layers that make queries, keys and values."""
        graph = self._graph
        if self._packed:
            query, key, value = (self._packed.pad(graph.op("MatMul", x, graph.constant(matrix))) for matrix, _ in parts)
            bias = graph.constant(np.concatenate([b for _, b in parts]))
            inputs = [query, key, value, bias, self._mask, *([self._bias] if self._bias is not None else [])]
            found = graph.op("MultiHeadAttention", *inputs, domain=MICROSOFT, num_heads=self._heads)
            return self._packed.pack(found, parts[0][0].shape[1])
        query, key, value = (graph.heads(graph.linear(x, *part), self._heads) for part in parts)
        size = parts[0][0].shape[1] // self._heads
        scores = graph.op("MatMul", graph.op("Mul", query, graph.scalar(size**-0.5)), graph.op("Transpose", key, perm=[0, 1, 3, 2]))
        weights = graph.op("Softmax", graph.op("Add", scores, self._mask), axis=-1)
        return graph.joined(graph.op("MatMul", weights, value))
