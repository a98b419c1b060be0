"""BERT over rows (Devlin et al., NAACL 2019, section 3): what is no row of the batch is not computed.

Its weights have the names, the shapes and the random start of the library's BertModel, and it gives that model's
numbers. Padding is never a key: keys and values are computed for tokens only, and queries for the rows asked for.

Shapes: B examples, R rows asked for, N tokens, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import BertConfig

from fine_tune.data.layout import Layout
from fine_tune.data.tokens import Batch
from fine_tune.models.attention import attend
from fine_tune.models.linear import Linear


class Bert(nn.Module):
    """The encoder of a BERT; raises ValueError for sizes that do not fit each other."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.pooler = Pooler(config)
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=config.initializer_range)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        if config.pad_token_id is not None:
            nn.init.zeros_(self.embeddings.word_embeddings.weight[config.pad_token_id])

    def forward(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the pooler's output (B, D) and the states after each layer, L times (R, D) in the rows of the batch.

        With `cls_only` the states are those of position 0 alone, (B, D), and the last layer computes nothing else.
        """
        layout = batch.layout
        states_RD = self.embeddings(batch)
        hiddens = []
        *lower, last = self.encoder.layer
        for layer in lower:
            states_RD = layer(states_RD, layout, states_RD, layout)
            hiddens.append(layout.select_cls(states_RD) if cls_only else states_RD)
        if cls_only:
            cls_BD = top_RD = last(layout.select_cls(states_RD), layout.cls, states_RD, layout)
        else:
            top_RD = last(states_RD, layout, states_RD, layout)
            cls_BD = layout.select_cls(top_RD)
        return self.pooler(cls_BD), [*hiddens, top_RD]


class Embeddings(nn.Module):
    """The sum of the embeddings of word piece, position and segment, normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.word_embeddings = WordEmbeddings(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Return the embedding of every row, (R, D)."""
        words_RD = self.word_embeddings(batch.input_ids)
        segments_RD = look_up(self.token_type_embeddings, batch.token_type_ids)
        positions_RD = look_up(self.position_embeddings, batch.layout.position_ids)
        return self.dropout(self.LayerNorm(words_RD + segments_RD + positions_RD))


class WordEmbeddings(nn.Embedding):
    """A table of which a batch reads few rows. Its gradient is large, and new memory costs a fault for every page.

    So a CPU fills the same memory anew in every step, if whoever clears the gradient has called `keep_gradient`.
    """

    kept: torch.Tensor | None = None

    def forward(self, index_R: torch.Tensor) -> torch.Tensor:
        """Return (R, D)."""
        if index_R.is_cuda or not torch.is_grad_enabled():
            return super().forward(index_R)
        return Words.apply(self.weight, index_R, self)

    def keep_gradient(self) -> None:
        """Let the next gradient overwrite this one, which is about to be cleared."""
        if not self.weight.is_cuda:
            self.kept = self.weight.grad


class Words(torch.autograd.Function):
    """The rows of a table of words, and its gradient where the table has kept memory for it."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, index_R: torch.Tensor, table: WordEmbeddings) -> torch.Tensor:
        """Take (V, D) and (R,); return (R, D)."""
        ctx.save_for_backward(index_R)
        ctx.table = table
        return weight.index_select(0, index_R)

    @staticmethod
    def backward(ctx: Any, gradient_RD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Take (R, D); return (V, D)."""
        (index_R,), table = ctx.saved_tensors, ctx.table
        gradient_VD, table.kept = torch.empty_like(table.weight) if table.kept is None else table.kept, None
        gradient_VD.zero_().index_add_(0, index_R, gradient_RD)
        if table.padding_idx is not None:
            gradient_VD[table.padding_idx].zero_()
        return gradient_VD, None, None


def look_up(table: nn.Embedding, index_R: torch.Tensor) -> torch.Tensor:
    """Return the entries (R, D) of a table of few."""
    return FewEntries.apply(table.weight, index_R) if index_R.is_cuda else table(index_R)


class FewEntries(torch.autograd.Function):
    """Entries of a table to which many rows add: a GPU's gradient as a product, in the same order at every time."""

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, index_R: torch.Tensor) -> torch.Tensor:
        """Take (T, D) and (R,); return (R, D)."""
        ctx.save_for_backward(index_R)
        ctx.entries = len(weight)
        return weight.index_select(0, index_R)

    @staticmethod
    def backward(ctx: Any, gradient_RD: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Take (R, D); return (T, D)."""
        (index_R,) = ctx.saved_tensors
        chosen_TR = torch.arange(ctx.entries, device=index_R.device)[:, None] == index_R
        return chosen_TR.to(gradient_RD.dtype) @ gradient_RD, None


class Layer(nn.Module):
    """Attention and the transformation of each row, each added to its input and normalised."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = SelfAttention(config)
        self.attention.output = Output(config.hidden_size, config)
        self.intermediate = Intermediate(config)
        self.output = Output(config.intermediate_size, config)

    def forward(self, states_RD: torch.Tensor, asked: Layout, context_RD: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the output (R, D) for the rows `states_RD` of `asked`, which attend to the tokens of `layout`."""
        return self.transform(self.attention.self(states_RD, asked, context_RD, layout), states_RD)

    def transform(self, mixed_RD: torch.Tensor, states_RD: torch.Tensor) -> torch.Tensor:
        """Take what attention made of each row, (R, D), and the row itself; return the layer's output (R, D)."""
        attended_RD = self.attention.output(mixed_RD, states_RD)
        return self.output(self.intermediate(attended_RD), attended_RD)


class SelfAttention(nn.Module):
    """Attention of many heads; what its weights multiply goes through dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            sizes = f"{config.hidden_size} is no multiple of num_attention_heads {config.num_attention_heads}"
            raise ValueError(f"hidden_size {sizes}")
        self.num_attention_heads = config.num_attention_heads
        self.query, self.key, self.value = (Linear(config.hidden_size, config.hidden_size) for _ in range(3))
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, states_RD: torch.Tensor, asked: Layout, context_RD: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return the mixed values (R, D) for the rows `states_RD` of `asked`."""
        projected = self.project(states_RD, layout.select_tokens(context_RD))
        dropout = self.dropout if self.training else 0.0
        return attend(*projected, asked, layout, self.num_attention_heads, dropout)

    def project(self, states_RD: torch.Tensor, tokens_ND: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the queries (R, D) of `states_RD`, and the keys and the values (N, D) of `tokens_ND`."""
        return self.query(states_RD), self.key(tokens_ND), self.value(tokens_ND)


class Intermediate(nn.Module):
    """The wide linear layer of the transformation and its activation."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)

    def forward(self, states_RD: torch.Tensor) -> torch.Tensor:
        """Take (R, D); return (R, intermediate_size)."""
        return self.activation(self.dense(states_RD))


class Output(nn.Module):
    """A linear layer back to D and dropout, added to the input and normalised."""

    def __init__(self, width: int, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, wide_RX: torch.Tensor, input_RD: torch.Tensor) -> torch.Tensor:
        """Take (R, width) and (R, D); return (R, D)."""
        return self.LayerNorm(self.dropout(self.dense(wide_RX)) + input_RD)


class Pooler(nn.Module):
    """tanh of a linear layer of the state of [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, cls_BD: torch.Tensor) -> torch.Tensor:
        """Take and return (B, D)."""
        return self.dense(cls_BD).tanh()


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the activation that the library knows by a name; raises KeyError if there is none."""
    if name == "gelu":
        return nn.GELU()
    from transformers.activations import ACT2FN  # seconds, which only a BERT of another activation pays

    return ACT2FN[name]
