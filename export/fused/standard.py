"""The same layers in ONNX's own operators, for TensorRT, whose compiler fuses them itself."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from amlr.export.fused.reader import Linear, Norm
from amlr.export.fused.writer import Mask, Writer, joined


class StandardWriter(Writer):
    """A writer of float32 graphs without onnxruntime's operators.

    An attention keeps its one product for queries, keys and values. Its scale is in the weights of
    the queries: TensorRT fuses an attention only if nothing scales the scores after the product.
    """

    takes_index = False

    def gelu(self, source: str, linear: Linear, label: str) -> str:
        """GELU with erf of a linear map, as the exporter spells it."""
        x = self.op("Add", [self.product(source, linear, label), self.bias(linear, label)])
        y = self.op("Erf", [self.op("Div", [x, self._number("sqrt_2", 2.0**0.5)])])
        y = self.op("Mul", [x, self.op("Add", [y, self._number("one", 1.0)])])
        return self.op("Mul", [y, self._number("half", 0.5)])

    def skip_norm(
        self, source: str, stream: str, norm: Norm, label: str, bias: str = "", *, keep: bool
    ) -> tuple[str, str]:
        """LayerNormalization of `source + stream + bias`, and that sum."""
        total = self.op("Add", [self.op("Add", [source, bias]) if bias else source, stream])
        return self.norm(total, norm, label), total

    def self_attention(
        self, source: str, qkv: Sequence[Linear], heads: int, label: str, mask: Mask
    ) -> str:
        """Attention of a tensor with itself: one product for queries, keys and values."""
        query, key, value = qkv
        scale = np.float32((query.weight.shape[1] // heads) ** -0.5)
        query = replace(query, weight=query.weight * scale, bias=query.bias * scale)
        made = self.linear(source, joined([query, key, value]), label)
        # Queries, keys and values of all heads, (B, 3 heads, T, width of a head).
        made = self.op("Reshape", [made, self.ints(0, 0, 3 * heads, -1)])
        made = self.op("Transpose", [made], perm=[0, 2, 1, 3])
        q, k, v = self.ops("Split", [made], 3, axis=1)
        scores = self.op("MatMul", [q, self.op("Transpose", [k], perm=[0, 1, 3, 2])])
        if mask.bias:
            scores = self.op("Add", [scores, mask.bias])
        mixed = self.op("MatMul", [self.op("Softmax", [scores], axis=-1), v])
        mixed = self.op("Transpose", [mixed], perm=[0, 2, 1, 3])
        return self.op("Reshape", [mixed, self.ints(0, 0, -1)])

    def _number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))
