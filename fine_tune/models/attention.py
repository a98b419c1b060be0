"""Attention over the rows of a batch (Vaswani et al., NeurIPS 2017, section 3.2).

Shapes: B examples, R rows asked for, N tokens, Q and K the most of these in one example, q and k those of one example,
X some rows, H heads, E = D / H.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from fine_tune.data.layout import Layout

WIDEST = 128  # of a head that FlashAttention takes on every GPU that it knows
CALLS = 1e6  # operations that a CPU does in the time that the calls for one more example take


def attend(
    query_RD: torch.Tensor,
    key_ND: torch.Tensor,
    value_ND: torch.Tensor,
    asked: Layout,
    layout: Layout,
    heads: int,
    dropout: float,
) -> torch.Tensor:
    """Return the mixed values (R, D) for the rows of `asked`, which attend to the tokens of `layout`.

    A GPU has a kernel for 16 bits that knows where each example begins (Dao, ICLR 2024, FlashAttention-2). A CPU goes
    from example to example where padding all to one length would cost more; the numbers are the same, those that
    dropout draws included.
    """
    if has_flash(query_RD, heads):
        rows = (rows_XD.unflatten(1, (heads, -1)) for rows_XD in (query_RD, key_ND, value_ND))
        bounds = (asked.cu_seqlens_q, layout.cu_seqlens_k, asked.max_rows, layout.max_seqlen)
        return torch.ops.aten._flash_attention_forward(*rows, *bounds, dropout, False, False)[0].flatten(1)
    if (
        on_cpu(query_RD)
        and padding_cost(asked, layout, query_RD.shape[1]) > CALLS * asked.batch
        and layout.is_token.all()
    ):
        parts = by_example(query_RD, key_ND, value_ND, asked, layout, heads, dropout)
        return torch.cat([mixed_HqE.transpose(0, 1).flatten(1) for mixed_HqE in parts])
    query_BHQE = split_heads(asked.pad_input(query_RD), heads)
    key_BHKE, value_BHKE = (split_heads(layout.pad_tokens(rows_ND), heads) for rows_ND in (key_ND, value_ND))
    if on_cpu(query_RD) and dropout:
        kept_BHQK = draw(asked, layout, heads, dropout)
        mixed_BHQE = mix_values(query_BHQE, key_BHKE, value_BHKE, kept_BHQK, layout.attention_bias)
    else:
        mask = layout.attention_mask
        mixed_BHQE = F.scaled_dot_product_attention(query_BHQE, key_BHKE, value_BHKE, mask, dropout)
    return asked.unpad_input(mixed_BHQE.transpose(1, 2).flatten(2))


def has_flash(query_RD: torch.Tensor, heads: int) -> bool:
    """Tell whether FlashAttention takes these rows; its operator is private, so another PyTorch may lack it."""
    width = query_RD.shape[1] // heads
    return (
        query_RD.is_cuda
        and query_RD.dtype in (torch.bfloat16, torch.float16)
        and width % 8 == 0
        and width <= WIDEST
        and torch.cuda.get_device_capability(query_RD.device) >= (8, 0)
        and torch.backends.cuda.is_flash_attention_available()
        and hasattr(torch.ops.aten, "_flash_attention_forward")
    )


def on_cpu(rows_XD: torch.Tensor) -> bool:
    """Tell whether a CPU computes what is asked of these rows."""
    return rows_XD.device.type == "cpu"


def padding_cost(asked: Layout, layout: Layout, width: int) -> int:
    """Return the operations, two a multiply-add, of attention's two products that a batch in one grid does in vain."""
    needed = sum(rows * tokens for rows, tokens in zip(asked.row_counts, layout.token_counts, strict=True))
    return 4 * width * (asked.batch * asked.max_rows * layout.max_seqlen - needed)


def by_example(
    query_RD: torch.Tensor,
    key_ND: torch.Tensor,
    value_ND: torch.Tensor,
    asked: Layout,
    layout: Layout,
    heads: int,
    dropout: float,
) -> Iterator[torch.Tensor]:
    """Yield the mixed values (H, q, E) of each example."""
    rows, tokens = asked.row_counts, layout.token_counts
    if dropout:
        kept_BHQK = draw(asked, layout, heads, dropout)
    parts = zip(query_RD.split(rows), key_ND.split(tokens), value_ND.split(tokens), strict=True)
    for example, part in enumerate(parts):
        query_HqE, key_HkE, value_HkE = (split_heads(part_XD, heads) for part_XD in part)
        if dropout:
            yield mix_values(query_HqE, key_HkE, value_HkE, kept_BHQK[example, :, : rows[example], : tokens[example]])
        else:
            yield F.scaled_dot_product_attention(query_HqE[None], key_HkE[None], value_HkE[None])[0]


def draw(asked: Layout, layout: Layout, heads: int, dropout: float) -> torch.Tensor:
    """Return by what dropout multiplies the weights, (B, H, Q, K): one draw for all, which the library makes, too."""
    shape = (asked.batch, heads, asked.max_rows, layout.max_seqlen)
    return torch.empty(shape).bernoulli_(1 - dropout).div_(1 - dropout)


def mix_values(
    query_HqE: torch.Tensor,
    key_HkE: torch.Tensor,
    value_HkE: torch.Tensor,
    kept_Hqk: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the values (..., H, q, E) mixed by weights, `kept_Hqk` (..., H, q, k) times the softmax of the scores.

    It is what the library does on a CPU, in fp32 throughout, but for its search for queries without any token. `bias`
    is added to the scores.
    """
    scale = query_HqE.shape[-1] ** -0.25
    with torch.autocast("cpu", enabled=False):
        scores_Hqk = (query_HqE.float() * scale) @ (key_HkE.float() * scale).transpose(-2, -1)
        if bias is not None:
            scores_Hqk += bias
        return ((scores_Hqk.softmax(-1) * kept_Hqk) @ value_HkE.float()).to(query_HqE.dtype)


def split_heads(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Return (..., X, D) as (..., H, X, E)."""
    return rows.unflatten(-1, (heads, -1)).transpose(-3, -2)
