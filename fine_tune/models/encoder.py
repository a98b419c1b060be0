"""BERT's forward pass over rows: what is no row of the batch is not computed.

It runs on the weights of the library's BertModel and gives its numbers (Devlin et al., NAACL 2019, section 3). Padding
is never a key: keys and values are computed for tokens only, and queries for the rows that are asked for.

Shapes: B examples, R rows asked for, N tokens, Q and K the most of these in one example, H heads, E = D / H.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertModel

from fine_tune.data.layout import Layout
from fine_tune.data.tokens import Batch


def encode(bert: BertModel, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the pooler's output (B, D) and the states after each layer, L times (R, D) in the rows of the batch.

    With `cls_only` the states are those of position 0 alone, (B, D), and the last layer computes nothing else.
    """
    layout = batch.layout
    states_RD = embed(bert.embeddings, batch)
    hiddens = []
    *lower, last = bert.encoder.layer
    for layer in lower:
        states_RD = transform(layer, states_RD, layout, states_RD, layout)
        hiddens.append(layout.select_cls(states_RD) if cls_only else states_RD)
    if cls_only:
        cls_BD = top_RD = transform(last, layout.select_cls(states_RD), layout.cls, states_RD, layout)
    else:
        top_RD = transform(last, states_RD, layout, states_RD, layout)
        cls_BD = layout.select_cls(top_RD)
    return bert.pooler.activation(bert.pooler.dense(cls_BD)), [*hiddens, top_RD]


def embed(embeddings: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the embedding of every row, (R, D)."""
    words_RD = embeddings.word_embeddings(batch.input_ids)
    segments_RD = embeddings.token_type_embeddings(batch.token_type_ids)
    positions_RD = embeddings.position_embeddings(batch.layout.position_ids)
    return embeddings.dropout(embeddings.LayerNorm(words_RD + segments_RD + positions_RD))


def transform(
    layer: nn.Module, states_RD: torch.Tensor, asked: Layout, context_RD: torch.Tensor, layout: Layout
) -> torch.Tensor:
    """Return a layer's output (R, D) for the rows `states_RD` of `asked`, which attend to the tokens of `layout`."""
    attention = layer.attention.self
    tokens_ND = layout.select_tokens(context_RD)
    query_BHQE = heads(asked.pad_input(attention.query(states_RD)), attention)
    key_BHKE = heads(layout.pad_tokens(attention.key(tokens_ND)), attention)
    value_BHKE = heads(layout.pad_tokens(attention.value(tokens_ND)), attention)
    dropout = attention.dropout.p if layer.training else 0.0
    mixed_BHQE = F.scaled_dot_product_attention(query_BHQE, key_BHKE, value_BHKE, layout.attention_mask, dropout)
    mixed_RD = asked.unpad_input(mixed_BHQE.transpose(1, 2).flatten(2))
    attended_RD = layer.attention.output(mixed_RD, states_RD)  # linear, dropout, LayerNorm of the sum
    return layer.output(layer.intermediate(attended_RD), attended_RD)


def heads(grid_BXD: torch.Tensor, attention: nn.Module) -> torch.Tensor:
    """Return (B, X, D) as (B, H, X, E)."""
    return grid_BXD.unflatten(2, (attention.num_attention_heads, -1)).transpose(1, 2)
