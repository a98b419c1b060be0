"""The encoder over rows against transformers' BertModel on padded arrays, with eager attention."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from fine_tune.data.layout import Layout, full, packed, sampled
from fine_tune.data.tokens import Batch
from fine_tune.models import attention
from fine_tune.models.encoder import Bert, FewEntries, WordEmbeddings
from fine_tune.training.optim import OptimizerGroup
from tests.built import LENGTHS, S, make_tokens

LAYERS = 3
LAYOUTS = {
    "full": full(LENGTHS, S),
    "packed": packed(LENGTHS, S),
    "sampled": sampled(LENGTHS, S, 2, [(0, 0, row) for row in range(4)]),
}


def make_config(**changes: Any) -> BertConfig:
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": LAYERS, "num_attention_heads": 3}
    sizes |= {"intermediate_size": 40, "max_position_embeddings": S, "initializer_range": 0.3}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertConfig(**sizes | changes, attn_implementation="eager")


def make_berts(**changes: Any) -> tuple[Bert, BertModel]:
    """Return ours and the library's, of the same start."""
    torch.manual_seed(0)
    ours = Bert(make_config(**changes)).eval()
    torch.manual_seed(0)
    return ours, BertModel(make_config(**changes)).eval()


def make_batch(layout: Layout) -> Batch:
    return make_tokens().batch(np.arange(4), layout)


def theirs(bert: BertModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the pooler's output (B, D) and the L hidden states (B, S, D) of the library's own forward pass."""
    batch = make_batch(full(LENGTHS, S))
    output = bert(
        input_ids=batch.input_ids.view(4, S),
        token_type_ids=batch.token_type_ids.view(4, S),
        attention_mask=torch.arange(S) < torch.tensor(LENGTHS)[:, None],
        output_hidden_states=True,
    )
    return output.pooler_output, list(output.hidden_states[1:])


@pytest.fixture(params=[0, math.inf], ids=["by example", "in one grid"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test says holds for both ways in which attention is computed on a CPU."""
    monkeypatch.setattr(attention, "CALLS", request.param)


@pytest.mark.parametrize("changes", [{}, {"pad_token_id": 3, "type_vocab_size": 1, "vocab_size": 7}])
def test_names_and_random_start_are_the_librarys(changes: dict[str, Any]) -> None:
    """And as many random numbers are drawn for it."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        ours, next_drawn = Bert(make_config(**changes)).state_dict(), torch.rand(3)
        torch.manual_seed(seed)
        known, known_drawn = BertModel(make_config(**changes)).state_dict(), torch.rand(3)
        assert list(ours) == list(known)
        assert all(torch.equal(ours[name], known[name]) for name in known)
        assert torch.equal(next_drawn, known_drawn)


@pytest.mark.parametrize("name", ["gelu", "gelu_new", "relu", "silu"])
def test_activations_are_the_librarys(name: str) -> None:
    (bert, known), layout = make_berts(hidden_act=name), LAYOUTS["full"]
    torch.testing.assert_close(bert(make_batch(layout), False)[0], theirs(known)[0], rtol=1e-5, atol=1e-5)
    other, _ = make_berts(hidden_act="tanh")
    assert not torch.allclose(other(make_batch(layout), False)[0], theirs(known)[0], atol=1e-2)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("cls_only", [False, True])
def test_numbers_are_the_librarys(name: str, cls_only: bool) -> None:
    (bert, known), layout = make_berts(), LAYOUTS[name]
    pooled, hiddens = bert(make_batch(layout), cls_only)
    expected, planes = theirs(known)
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=1e-5)
    assert len(hiddens) == LAYERS
    for found, plane in zip(hiddens, planes, strict=True):
        wanted = plane[:, 0] if cls_only else plane[layout.batch_index, layout.position_ids]
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(hiddens[0], hiddens[1], atol=1e-2)  # layers do something


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("cls_only", [False, True])
def test_gradients_are_the_librarys(name: str, cls_only: bool) -> None:
    """Of a loss over the rows that are read, weighted so that no two rows count the same."""
    (bert, known), layout = make_berts(), LAYOUTS[name]
    layout = layout.cls if cls_only else layout
    weights = torch.randn(LAYERS, 4, S, 24, generator=torch.Generator().manual_seed(1))

    def gradients(model: torch.nn.Module, pooled: torch.Tensor, read: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        pairs = zip(read, weights[:, layout.batch_index, layout.position_ids], strict=True)
        loss = pooled.sum() + sum((weight * state).sum() for state, weight in pairs)
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    pooled, planes = theirs(known)
    expected = gradients(known, pooled, [plane[layout.batch_index, layout.position_ids] for plane in planes])
    pooled, hiddens = bert(make_batch(LAYOUTS[name]), cls_only)
    found = gradients(bert, pooled, hiddens)
    for name_, gradient in expected.items():
        torch.testing.assert_close(found[name_], gradient, rtol=1e-4, atol=1e-4 * weights.abs().max().item())
    assert all(gradient.abs().max() > 1e-2 for name_, gradient in expected.items() if "key.bias" not in name_)


@pytest.mark.usefixtures("both_ways")
def test_padding_is_seen_by_nobody() -> None:
    """Another word in the padding changes the padding rows alone."""
    (bert, _), layout = make_berts(), LAYOUTS["full"]
    batch = make_batch(layout)
    _, before = bert(batch, cls_only=False)
    padding = torch.ones(len(layout), dtype=torch.bool)
    padding[layout.token_rows] = False
    batch.input_ids[padding] = 7
    _, after = bert(batch, cls_only=False)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[~padding], other[~padding])
        assert not torch.allclose(one[padding], other[padding])


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(("hidden", "attention"), [(0.5, 0.0), (0.0, 0.5)])
def test_dropout_is_on_in_training_only(hidden: float, attention: float) -> None:
    bert, _ = make_berts(hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
    batch = make_batch(LAYOUTS["packed"])
    bert.train()
    assert not torch.allclose(bert(batch, False)[0], bert(batch, False)[0])
    bert.eval()
    assert torch.equal(bert(batch, False)[0], bert(batch, False)[0])


def test_dropout_has_the_librarys_distribution() -> None:
    """Mean and spread of the first layer's output over many draws, for the same dropout in both."""
    bert, known = (model.train() for model in make_berts(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3))
    layout, draws = LAYOUTS["full"], 600
    with torch.no_grad():
        ours = torch.stack([bert(make_batch(layout), False)[1][0] for _ in range(draws)])
        wanted = torch.stack([theirs(known)[1][0].view(-1, 24) for _ in range(draws)])
    error = 5 * ((ours.var(0) + wanted.var(0)) / draws).sqrt()
    assert ((ours.mean(0) - wanted.mean(0)).abs() < error).float().mean() > 0.999
    torch.testing.assert_close(ours.std(0).mean(), wanted.std(0).mean(), rtol=0.02, atol=0)


def test_a_table_of_few_entries_is_looked_up_as_any() -> None:
    """With its gradient as a product, as on a GPU; some entries are asked for often, one never."""
    table, index = torch.nn.Embedding(5, 7), torch.tensor([0, 1, 1, 4, 0, 1, 2, 1])
    weights = torch.randn(8, 7, generator=torch.Generator().manual_seed(0))
    known, found = table(index), FewEntries.apply(table.weight, index)
    assert torch.equal(found, known)
    (expected,), (gradient,) = (torch.autograd.grad((rows * weights).sum(), table.weight) for rows in (known, found))
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
    assert not gradient[3].any()


@pytest.mark.parametrize("padding", [0, 3, None])
def test_a_table_of_words_has_the_librarys_gradients_step_after_step(padding: int | None) -> None:
    """Two micro-batches a step; every step but the first fills the memory of the one before."""
    known, found = (table(9, 7, padding_idx=padding) for table in (torch.nn.Embedding, WordEmbeddings))
    found.load_state_dict(known.state_dict())
    groups = [OptimizerGroup("table", [table], 0.1, (0.9, 0.99), 1e-8, 0.01, 1.0, 0, 9) for table in (known, found)]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 4):
        place = None if found.kept is None else found.kept.data_ptr()  # a copy would lie elsewhere
        for _ in range(2):
            index, weights = torch.randint(9, (30,), generator=generator), torch.randn(30, 7, generator=generator)
            for table in (known, found):
                (table(index) * weights).sum().backward()
        assert place == (None if step == 1 else found.weight.grad.data_ptr())
        assert torch.equal(found.weight.grad, known.weight.grad)
        for group in groups:
            group.step(step, torch.zeros(()))
        assert torch.equal(found.weight, known.weight)


def test_gradients_that_nobody_cleared_stay_what_they_are() -> None:
    """After a step whose gradient was nan, and where a graph reads the table twice."""
    table, index = WordEmbeddings(5, 3, padding_idx=0), torch.tensor([1, 2, 1])
    expected = torch.zeros(5, 3).index_add(0, index, torch.ones(3, 3))
    (table(index) * math.nan).sum().backward()
    table.keep_gradient()
    table.weight.grad = None
    first = torch.autograd.grad(table(index).sum(), table.weight)[0]
    table(index).sum().backward()
    (table(index) + table(index)).sum().backward()
    second = torch.autograd.grad((2 * table(index)).sum(), table.weight)[0]
    assert torch.equal(first, expected)
    assert torch.equal(table.weight.grad, 3 * expected)
    assert torch.equal(second, 2 * expected)
    with torch.no_grad():
        assert torch.equal(table(index), table.weight[index])


def test_a_bert_without_a_padding_token_has_a_word_for_every_entry() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    for padding in (0, None):
        table = Bert(BertConfig(**sizes, pad_token_id=padding)).embeddings.word_embeddings.weight
        assert table.any(1).tolist() == [index != padding for index in range(9)]
