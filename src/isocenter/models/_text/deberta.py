"""DeBERTa, versions 1, 2 and 3, as ONNX graphs (He et al., https://arxiv.org/abs/2006.03654 and https://arxiv.org/abs/2111.09543).

A score between two tokens is the sum of content to content, content to position and position to content. Positions are
relative and the same for all texts, so what the layers make of them is computed here, once, and lies in the graph as constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isocenter.core.errors import ModelError
from isocenter.models._text.bert import norm, tokens
from isocenter.models._text.graph import Graph
from isocenter.models._text.weights import Array, Weights

FAMILY = {"deberta", "deberta-v2"}
_MASKED = float(np.finfo(np.float32).min)


def build(graph: Graph, config: Mapping[str, Any], weights: Weights, layers: int) -> str:
    """The hidden states (batch, tokens, hidden) behind the first `layers` layers."""
    from onnx import TensorProto

    ids, mask = graph.input("ids", ("batch", "tokens")), graph.input("mask", ("batch", "tokens"))
    epsilon = float(config.get("layer_norm_eps", 1e-7))
    visible = graph.op("Cast", mask, to=TensorProto.FLOAT)
    column = graph.op("Unsqueeze", visible, graph.ints(2))
    start = x = _embeddings(graph, ids, column, config, weights, epsilon)
    attention = _Attention(graph, ids, visible, config, weights, epsilon)
    for index in range(layers):
        at = f"encoder.layer.{index}."
        context = attention.context(x, at)
        dense = weights.linear(f"{at}attention.output.dense")
        y = graph.add_and_normalise(context, dense, x, norm(weights, f"{at}attention.output.LayerNorm"), epsilon)
        wide = graph.activate(y, weights.linear(f"{at}intermediate.dense"), str(config.get("hidden_act", "gelu")))
        y = graph.add_and_normalise(wide, weights.linear(f"{at}output.dense"), y, norm(weights, f"{at}output.LayerNorm"), epsilon)
        x = _convolved(graph, start, y, column, config, weights, epsilon) if index == 0 and weights.has("encoder.conv.conv.weight") else y
    return x


def _embeddings(graph: Graph, ids: str, column: str, config: Mapping[str, Any], weights: Weights, epsilon: float) -> str:
    x = graph.op("Gather", graph.constant(weights.get("embeddings.word_embeddings.weight")), ids)
    if config.get("position_biased_input", True):
        table = graph.constant(weights.get("embeddings.position_embeddings.weight"))
        x = graph.op("Add", x, graph.op("Slice", table, graph.ints(0), tokens(graph, ids), graph.ints(0)))
    if config.get("type_vocab_size", 0) > 0:
        x = graph.op("Add", x, graph.constant(weights.get("embeddings.token_type_embeddings.weight")[0]))
    if weights.has("embeddings.embed_proj.weight"):
        x = graph.linear(x, weights.linear("embeddings.embed_proj")[0])
    return graph.op("Mul", graph.normalise(x, *norm(weights, "embeddings.LayerNorm"), epsilon), column)


def _convolved(graph: Graph, start: str, y: str, column: str, config: Mapping[str, Any], weights: Weights, epsilon: float) -> str:
    """The first layer of some version 2 models also looks at each token's neighbours."""
    kernel = weights.get("encoder.conv.conv.weight")
    pad = (kernel.shape[-1] - 1) // 2
    turned = graph.op("Transpose", start, perm=[0, 2, 1])
    bias = graph.constant(weights.get("encoder.conv.conv.bias"))
    folded = graph.op("Conv", turned, graph.constant(kernel), bias, pads=[pad, pad], group=int(config.get("conv_groups", 1)))
    near = graph.op("Mul", graph.op("Transpose", folded, perm=[0, 2, 1]), column)
    summed = graph.op("Add", y, graph.activation(near, str(config.get("conv_act", "tanh"))))
    return graph.op("Mul", graph.normalise(summed, *norm(weights, "encoder.conv.LayerNorm"), epsilon), column)


class _Attention:
    """Disentangled attention of every layer, over one mask and one table of relative positions."""

    def __init__(self, graph: Graph, ids: str, visible: str, config: Mapping[str, Any], weights: Weights, epsilon: float) -> None:
        self._graph, self._config, self._weights = graph, config, weights
        self._heads = int(config["num_attention_heads"])
        kinds = config.get("pos_att_type") or []
        self._kinds = kinds.split("|") if isinstance(kinds, str) else list(kinds)
        if config.get("talking_head"):
            raise ModelError("DeBERTa models with talking heads are not supported")
        rows, columns = graph.op("Unsqueeze", visible, graph.ints(2)), graph.op("Unsqueeze", visible, graph.ints(1))
        seen = graph.op("Unsqueeze", graph.op("Mul", rows, columns), graph.ints(1))
        self._hidden = graph.op("Mul", graph.op("Sub", graph.scalar(1.0), seen), graph.scalar(_MASKED))
        self._relative: Array | None = None
        if config.get("relative_attention"):
            self._relative = _relative_embeddings(config, weights, epsilon)
            self._to_position, self._to_content = self._indices(ids, len(self._relative) // 2)

    def _indices(self, ids: str, span: int) -> tuple[str, str]:
        """Which relative position lies between two tokens, for both directions, cut to the batch's length."""
        graph, size = self._graph, int(self._config["max_position_embeddings"])
        distance = relative_positions(size, self._config)
        length = tokens(graph, ids)
        ends = graph.op("Concat", length, length, axis=0)
        # The second table is turned here, so that its result needs no turning back of indices.
        tables = (np.clip(distance + span, 0, 2 * span - 1), np.clip(-distance + span, 0, 2 * span - 1))
        first, second = (graph.op("Slice", graph.constant(t), graph.ints(0, 0), ends, graph.ints(0, 1)) for t in tables)
        return first, second

    def context(self, x: str, at: str) -> str:
        """What each token gathers from the others in the layer at this prefix."""
        graph = self._graph
        parts = self._parts(f"{at}attention.self.")
        scale = float(np.sqrt(parts[0][0].shape[1] // self._heads * (1 + len(self._kinds))))
        query, key, value = (graph.heads(graph.linear(x, *part), self._heads) for part in parts)
        query = graph.op("Mul", query, graph.scalar(1 / scale))
        turned = graph.op("Transpose", key, perm=[0, 1, 3, 2])
        scores = graph.op("MatMul", query, turned)
        shape = graph.op("Shape", scores)
        if self._relative is not None:
            to_key, to_query = self._positions(f"{at}attention.self.", parts, self._relative)
            if "c2p" in self._kinds:
                found = self._gathered(query, to_key, self._to_position, shape)
                scores = graph.op("Add", scores, found)
            if "p2c" in self._kinds:
                found = self._gathered(key, to_query / scale, self._to_content, shape)
                scores = graph.op("Add", scores, graph.op("Transpose", found, perm=[0, 1, 3, 2]))
        weights = graph.op("Softmax", graph.op("Add", scores, self._hidden), axis=-1)
        return graph.joined(graph.op("MatMul", weights, value))

    def _gathered(self, states: str, positions: Array, index: str, shape: str) -> str:
        """`states` (batch, heads, tokens, size) against all relative positions (heads, size, 2 span), then the ones that `index` names."""
        graph = self._graph
        all_scores = graph.op("MatMul", states, graph.constant(positions))
        return graph.op("GatherElements", all_scores, graph.op("Expand", index, shape), axis=-1)

    def _parts(self, at: str) -> list[tuple[Array, Array]]:
        """The layers that make queries, keys and values; version 1 has them interleaved by head in one matrix."""
        weights = self._weights
        if self._config["model_type"] != "deberta":
            return [weights.linear(f"{at}{name}_proj") for name in ("query", "key", "value")]
        joined = weights.get(f"{at}in_proj.weight")  # (heads x (query, key, value) x size, hidden)
        hidden = joined.shape[1]
        split = joined.reshape(self._heads, 3, -1, hidden)
        matrices = [np.ascontiguousarray(split[:, i].reshape(-1, hidden).T) for i in range(3)]
        none = np.zeros(matrices[0].shape[1], np.float32)
        return list(zip(matrices, (weights.get(f"{at}q_bias"), none, weights.get(f"{at}v_bias")), strict=True))

    def _positions(self, at: str, parts: list[tuple[Array, Array]], relative: Array) -> tuple[Array, Array]:
        """Relative positions as keys and as queries, (heads, size, 2 span) each."""
        old = self._config["model_type"] == "deberta"
        if self._config.get("share_att_key") and not old:
            return self._projected(relative, parts[1]), self._projected(relative, parts[0])
        key, query = ("pos_proj", "pos_q_proj") if old else ("pos_key_proj", "pos_query_proj")
        layers = [self._weights.linear(at + n) if self._weights.has(f"{at}{n}.weight") else parts[0] for n in (key, query)]
        return self._projected(relative, layers[0]), self._projected(relative, layers[1])

    def _projected(self, relative: Array, layer: tuple[Array, Array]) -> Array:
        made = relative @ layer[0] + layer[1]
        return np.ascontiguousarray(made.reshape(len(made), self._heads, -1).transpose(1, 2, 0))


def _relative_embeddings(config: Mapping[str, Any], weights: Weights, epsilon: float) -> Array:
    """The vectors of relative positions (2 span, hidden)."""
    table = weights.get("encoder.rel_embeddings.weight")
    if "layer_norm" in str(config.get("norm_rel_ebd", "none")).lower():
        scale, shift = norm(weights, "encoder.LayerNorm")
        centred = table - table.mean(-1, keepdims=True)
        table = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(epsilon)) * scale + shift
    return np.asarray(table[: 2 * span(config)], np.float32)


def span(config: Mapping[str, Any]) -> int:
    """How many relative positions there are in each direction."""
    buckets = int(config.get("position_buckets", -1))
    if buckets > 0 and config["model_type"] != "deberta":
        return buckets
    longest = int(config.get("max_relative_positions", -1))
    return longest if longest >= 1 else int(config["max_position_embeddings"])


def relative_positions(size: int, config: Mapping[str, Any]) -> NDArray[np.int64]:
    """Query's position minus key's, (size, size); far ones fall into logarithmic buckets where the model has those."""
    distance = np.arange(size)[:, None] - np.arange(size)[None, :]
    buckets = int(config.get("position_buckets", -1))
    longest = int(config.get("max_relative_positions", -1))
    longest = longest if longest >= 1 else int(config["max_position_embeddings"])
    if buckets <= 0 or config["model_type"] == "deberta":
        return distance.astype(np.int64)
    middle = buckets // 2
    far = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
    scaled = np.log(far / np.float32(middle)) / np.log(np.float32((longest - 1) / middle)) * (middle - 1)
    bucket = np.where(far <= middle, distance, (np.ceil(scaled) + middle) * np.sign(distance))
    return bucket.astype(np.int64)
