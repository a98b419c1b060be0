"""What a BERT classifier costs: its parameters, and the operations of a forward pass."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Parameters, and GFLOPs (two a multiply-add) of a forward pass of one text at max_seq_len.

    gflops: of the linear layers; attention_gflops: of the products between positions, which not every count includes.
    """

    params: int
    params_without_embeddings: int
    gflops: float
    attention_gflops: float


def cost(sizes: dict[str, Any], num_class: int, seq_len: int) -> Cost:
    """Count what a classifier of an encoder's `sizes` costs: what its modules would add up to, without making them.

    With D hidden size, F intermediate size, L layers, S seq_len and C classes, a layer has the weights 4 D^2 (query,
    key, value, output) and 2 D F, which each position meets once, and two products of S^2 D; pooler D^2 and head D C
    meet [CLS] only. 9 D + F biases and LayerNorm weights add to a layer's parameters, and cost next to nothing.
    """
    width, inner, layers = sizes["hidden_size"], sizes["intermediate_size"], sizes["num_hidden_layers"]
    vectors = sizes["vocab_size"] + sizes["max_position_embeddings"] + sizes["type_vocab_size"] + 2  # 2: LayerNorm
    layer, top = 4 * width**2 + 2 * width * inner, width**2 + width * num_class
    bare = layers * (layer + 9 * width + inner) + top + width + num_class
    linear, attention = 2 * (layers * layer * seq_len + top), layers * 2 * 2 * seq_len**2 * width
    return Cost(bare + vectors * width, bare, linear / 1e9, attention / 1e9)


def params_words(number: int) -> str:
    """Return a number of parameters as millions or thousands."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"
