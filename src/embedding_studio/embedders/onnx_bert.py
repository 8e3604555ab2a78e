"""BERT for ONNX Runtime, from the weights as PyTorch's models are kept: nothing is converted beforehand.

Axes: N texts · T tokens of the longest · D dimensions.

The graph is a few operators a layer, written as they are run (those that exporters' graphs are fused into),
and holds no weights: ONNX Runtime is given them where they lie. So neither torch nor an exporter is needed,
nor a second copy of the file; what is not turned stays in the file's pages, which processes share.

Source: [devlin2019], "BERT"; the operators: ONNX Runtime, docs/ContribOperators.md; the messages:
onnx.proto3; the file of weights: https://github.com/huggingface/safetensors, "Format".
"""

import json
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = int | float | str | bytes
Weights = Mapping[str, NDArray[np.float32]]

IR_VERSION, OPSET = 8, 17
"""Of ONNX; what any ONNX Runtime since 2022 reads."""

FLOAT, INT32 = 1, 6  # TensorProto.DataType
EXTERNAL = 1  # TensorProto.DataLocation
ATTRIBUTE_FLOAT, ATTRIBUTE_INT = 1, 2  # AttributeProto.AttributeType
CONTRIBUTED = "com.microsoft"


class OnnxBert:
    """A model in memory. Safe to use from several threads: a call takes one core, the caller's."""

    def __init__(self, weights: Weights, *, heads: int, epsilon: float) -> None:
        """Load it.

        Args:
            weights: by the names that the library transformers gives those of a ``BertModel``.
            heads: of attention, in each layer.
            epsilon: is added to variances.

        Raises:
            KeyError: a weight is missing.
            ImportError: ONNX Runtime is.
        """
        # Read at the import. Else it notes what runs where in the user's cache, to be sent to its makers.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        # ONNX Runtime reads the arrays where they lie, as long as the session lives.
        nodes, self._weights = _bert(weights, heads=heads, epsilon=epsilon)
        self._values = list(map(onnxruntime.OrtValue.ortvalue_from_numpy, self._weights.values()))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_external_initializers(list(self._weights), self._values)
        self._session = onnxruntime.InferenceSession(
            _model(nodes, self._weights), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, tokens: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Return [N, D]: the mean over a text's tokens, of length 1.

        Args:
            tokens: the ids of each text; at least one text, and one token of each.
        """
        lengths = np.array([len(ids) for ids in tokens])
        is_token = np.arange(lengths.max()) < lengths[:, None]  # [N, T]
        padded = np.zeros(is_token.shape, dtype=np.int32)
        padded[is_token] = np.concatenate(tokens)
        [states] = self._session.run(None, {"tokens": padded, "is_token": is_token.astype(np.int32)})
        sums: NDArray[np.float32] = np.einsum("ntd,nt->nd", states, is_token.astype(np.float32))
        lengths_of_sums: NDArray[np.float32] = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / lengths_of_sums


def read_safetensors(path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the float32 tensors of a file by name; they are read when they are used.

    Raises:
        ValueError: it is no such file, or not the whole of it.
        OSError: it cannot be read.
    """
    content = np.memmap(path, dtype=np.uint8, mode="r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(content[8:start].tobytes())
    return {
        name: content[start + told["data_offsets"][0] : start + told["data_offsets"][1]]
        .view("<f4")
        .reshape(told["shape"])
        for name, told in header.items()
        if told.get("dtype") == "F32"
    }


def _bert(weights: Weights, *, heads: int, epsilon: float) -> tuple[list[bytes], dict[str, Any]]:
    """Return the nodes, and the weights as they take them: by name, matrices [in, out]."""
    given: dict[str, NDArray[np.float32]] = {}
    nodes: list[bytes] = []

    def give(name: str, array: NDArray[np.float32]) -> str:
        given[name] = np.ascontiguousarray(array)
        return name

    def own(name: str) -> str:
        return give(name, weights[name])

    def turned(name: str) -> str:
        return give(name, weights[name].T)

    def node(kind: str, inputs: list[str], outputs: list[str], domain: str = CONTRIBUTED, **more: Any) -> str:
        nodes.append(_node(kind, inputs, outputs, domain, more))
        return outputs[0]

    def added_and_normed(layer: str, states: str, residual: str) -> str:
        norm = f"{layer}.LayerNorm"
        # SkipLayerNormalization does all of it, but number by number, which takes three times as long.
        added = node("Add", [states, residual], [f"{norm}.added"], "")
        added = node("Add", [added, own(f"{layer}.dense.bias")], [f"{norm}.input"], "")
        inputs = [added, own(f"{norm}.weight"), own(f"{norm}.bias")]
        return node("LayerNormalization", inputs, [norm], "", epsilon=epsilon)

    embedding = "embeddings"
    of_kind = weights[f"{embedding}.token_type_embeddings.weight"][0]  # every token is of the first kind
    places = give(
        f"{embedding}.position_embeddings", weights[f"{embedding}.position_embeddings.weight"] + of_kind
    )
    norm = [own(f"{embedding}.LayerNorm.{part}") for part in ("weight", "bias")]
    inputs = ["tokens", "", own(f"{embedding}.word_embeddings.weight"), places, "", *norm, "is_token"]
    states = node("EmbedLayerNormalization", inputs, ["embedded", "token_counts"], epsilon=epsilon)
    for number in range(sum(name.endswith(".intermediate.dense.weight") for name in weights)):
        layer = f"encoder.layer.{number}"
        attended = [f"{layer}.attention.self.{part}" for part in ("query", "key", "value")]
        matrix = give(f"{layer}.qkv", np.concatenate([weights[f"{part}.weight"] for part in attended]).T)
        bias = give(f"{layer}.qkv.bias", np.concatenate([weights[f"{part}.bias"] for part in attended]))
        inputs = [states, matrix, bias, "token_counts"]
        attention = node("Attention", inputs, [f"{layer}.heads"], num_heads=heads)
        output = f"{layer}.attention.output"
        mixed = node("MatMul", [attention, turned(f"{output}.dense.weight")], [f"{output}.mixed"], "")
        seen = added_and_normed(output, mixed, states)
        inner = f"{layer}.intermediate.dense"
        wide = node("MatMul", [seen, turned(f"{inner}.weight")], [f"{layer}.wide"], "")
        bent = node("BiasGelu", [wide, own(f"{inner}.bias")], [f"{layer}.bent"])
        output = f"{layer}.output"
        narrow = node("MatMul", [bent, turned(f"{output}.dense.weight")], [f"{output}.narrow"], "")
        states = added_and_normed(output, narrow, seen)
    node("Identity", [states], ["states"], "")
    return nodes, given


def _model(nodes: list[bytes], weights: Weights) -> bytes:
    graph = _message(
        (1, nodes),
        (2, "bert"),
        (5, [_weight(name, array.shape) for name, array in weights.items()]),
        (11, [_value(name, INT32, "N", "T") for name in ("tokens", "is_token")]),
        (12, [_value("states", FLOAT, "N", "T", "D")]),
    )
    opsets = [_message((1, domain), (2, version)) for domain, version in (("", OPSET), (CONTRIBUTED, 1))]
    return _message((1, IR_VERSION), (7, graph), (8, opsets))


def _node(kind: str, inputs: list[str], outputs: list[str], domain: str, more: Mapping[str, Any]) -> bytes:
    attributes = [
        _message((1, name), (2, value), (20, ATTRIBUTE_FLOAT))
        if isinstance(value, float)
        else _message((1, name), (3, value), (20, ATTRIBUTE_INT))
        for name, value in more.items()
    ]
    return _message((1, inputs), (2, outputs), (4, kind), (5, attributes), (7, domain))


def _weight(name: str, shape: Sequence[int]) -> bytes:
    elsewhere = _message((1, "location"), (2, "given to the session"))
    return _message((1, list(shape)), (2, FLOAT), (8, name), (13, elsewhere), (14, EXTERNAL))


def _value(name: str, kind: int, *axes: str) -> bytes:
    shape = _message((1, [_message((2, axis)) for axis in axes]))
    return _message((1, name), (2, _message((1, _message((1, kind), (2, shape))))))


def _message(*fields: tuple[int, Field | Sequence[Field]]) -> bytes:
    """Return a message of Protocol Buffers: numbers of fields, and their values or lists of them.

    >>> _message((1, 150), (2, "testing")).hex(" ")  # the examples of protobuf.dev, "Encoding"
    '08 96 01 12 07 74 65 73 74 69 6e 67'
    """
    written = bytearray()
    for number, given in fields:
        for value in [given] if isinstance(given, Field) else given:
            if isinstance(value, int):
                written += _varint(number << 3) + _varint(value)
            elif isinstance(value, float):
                written += _varint(number << 3 | 5) + struct.pack("<f", value)
            else:
                content = value.encode() if isinstance(value, str) else value
                written += _varint(number << 3 | 2) + _varint(len(content)) + content
    return bytes(written)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
