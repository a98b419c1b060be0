"""How teacher and student start, tensor by tensor, and which checkpoints load."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, BertTokenizer

from fine_tune.core.errors import UserError
from fine_tune.models import bert, pretrained
from fine_tune.training import checkpoint
from tests import tiny


def distilled(root: Path, **changes: object) -> dict[str, torch.Tensor]:
    """Return the student's weights at step 1, which runs at lr 0: the initial ones."""
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, total_step=1, warmup_step=1, **changes))
    return tiny.load(root / "runs" / "student_bert_qqp" / "model-1.pt")


def same(student: dict[str, torch.Tensor], name: str, source: torch.Tensor) -> bool:
    return torch.equal(student[f"encoder.{name}"], source)


@pytest.mark.parametrize(("student_init", "taken"), [("even", {0: 1, 1: 3}), ("first", {0: 0, 1: 1})])
def test_student_starts_from_the_pretrained_model(root: Path, student_init: str, taken: dict[int, int]) -> None:
    source = load_file(root / "bert" / "model.safetensors")
    student = distilled(root, student_init=student_init)
    seen = {"linear_layer.weight", "linear_layer.bias"}
    for name, value in source.items():
        if name.startswith("encoder.layer."):
            continue
        if name == "embeddings.position_embeddings.weight":
            value = value[: tiny.SEQ_LEN]
        assert same(student, name, value), name
        seen.add(f"encoder.{name}")
    for layer, origin in taken.items():
        for name, value in source.items():
            if name.startswith(f"encoder.layer.{origin}."):
                here = name.replace(f"layer.{origin}.", f"layer.{layer}.")
                assert same(student, here, value), here
                seen.add(f"encoder.{here}")
    assert seen == set(student)  # every tensor was looked at
    # Not from the fine-tuned teacher:
    teacher = tiny.load(root / "runs" / "teacher_bert_qqp" / "model-4.pt")
    name = "encoder.encoder.layer.1.output.dense.weight"
    assert not torch.equal(student[name], teacher[name.replace("layer.1", f"layer.{taken[1]}")])


def test_random_starts(root: Path) -> None:
    source = load_file(root / "bert" / "model.safetensors")
    student = distilled(root, student_init="even", embedding_init="random")
    assert not same(student, "embeddings.word_embeddings.weight", source["embeddings.word_embeddings.weight"])
    assert same(student, "pooler.dense.weight", source["pooler.dense.weight"])
    shutil.rmtree(root / "runs" / "student_bert_qqp")
    student = distilled(root, student_init="random", d_ff=24, num_attention_heads=4)
    assert same(student, "embeddings.word_embeddings.weight", source["embeddings.word_embeddings.weight"])
    assert not same(student, "pooler.dense.weight", source["pooler.dense.weight"])
    assert student["encoder.encoder.layer.0.intermediate.dense.weight"].shape == (24, 16)


def test_student_config(root: Path) -> None:
    distilled(root, dropout=0.25)
    saved = tiny.config(root / "runs" / "student_bert_qqp")
    assert saved["encoder"]["max_position_embeddings"] == tiny.SEQ_LEN
    assert saved["encoder"]["hidden_dropout_prob"] == saved["encoder"]["attention_probs_dropout_prob"] == 0.25
    assert (saved["kind"], saved["num_class"], saved["max_seq_len"], saved["dataset"]) == ("student", 2, 16, "train")


def test_teacher_encoder_keeps_its_own_dropout(tmp_path: Path) -> None:
    tiny.make_bert(tmp_path / "bert", dropout=0.3)
    tiny.make_qqp(tmp_path / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, total_step=1, dropout=0.05))
    saved = tiny.config(tmp_path / "runs" / "teacher_bert_qqp")
    assert saved["encoder"]["hidden_dropout_prob"] == 0.3
    model = bert.BertClassifier(pretrained.find_pretrained(str(tmp_path / "bert"), "x").encoder(), 2, 0.05)
    assert (model.dropout.p, model.encoder.embeddings.dropout.p) == (0.05, 0.3)


def test_half_precision_weights_are_read_as_fp32(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    encoder = pretrained.find_pretrained(str(folder), "x").encoder()
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


# --- broken pre-trained models ----------------------------------------------------------------------------------------


def drop_vocabulary(folder: Path) -> None:
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def shorten_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(tiny.VOCABULARY[:-1]) + "\n")


def flip_type(folder: Path) -> None:
    values = tiny.config(folder)
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "roberta"}))


def capitalise(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(word.replace("w", "W") for word in tiny.VOCABULARY) + "\n")


def drop_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layer.2." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def drop_bias_of_the_pooler(folder: Path) -> None:
    rewrite_weights(folder, lambda weights: {k: v for k, v in weights.items() if k != "pooler.dense.bias"})


def spoil_a_number(folder: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["encoder.layer.1.output.dense.bias"][3] = float("nan")
        return weights

    rewrite_weights(folder, spoil)


BROKEN = {
    "no vocabulary": (drop_vocabulary, "holds no tokenizer.json or vocab.txt"),
    "short vocabulary": (shorten_vocabulary, "has 45 entries, but the model needs 46"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors or pytorch"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "cannot be loaded"),
    "a layer missing": (drop_layer, "lacks 16 of BERT's weights, encoder.layer.2."),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "a cased vocabulary": (
        capitalise,
        "lower-cases all texts, but its vocabulary is cased; it needs a tokenizer_config",
    ),
    "a wrong shape": (
        lambda folder: tiny.change_config(folder, max_position_embeddings=64),
        "embeddings.position_embeddings.weight has the shape (32, 16), but config.json says (64, 16)",
    ),
    "half a pooler": (drop_bias_of_the_pooler, "lacks 1 of BERT's weights, pooler.dense.bias first"),
    "not a number": (spoil_a_number, "encoder.layer.1.output.dense.bias holds numbers that are not finite"),
    "another model": (flip_type, "holds a roberta model; only BERT"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pretrained_model_is_one_line(tmp_path: Path, name: str) -> None:
    tiny.make_bert(tmp_path / "bert")
    tiny.make_qqp(tmp_path / "data")
    damage, expected = BROKEN[name]
    damage(tmp_path / "bert")
    with pytest.raises(UserError) as caught:
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path))
    assert str(caught.value).startswith(f"--ptrain_ver {tmp_path / 'bert'}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


# --- what is refused, and what is fine --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"position_embedding_type": "relative_key"}, "has position_embedding_type relative_key; only absolute is"),
        ({"position_embedding_type": "relative_key_query"}, "has position_embedding_type relative_key_query; only"),
        ({"hidden_act": "silly"}, "has hidden_act silly; only gelu, "),
        ({"quantization_config": {"bits": 8}}, "has quantization_config {'bits': 8}; only None is computed here"),
        ({"is_decoder": True}, "has is_decoder True; only False is computed here"),
        ({"add_cross_attention": True}, "has add_cross_attention True; only False is computed here"),
        ({"pruned_heads": {"1": [0]}}, "has pruned_heads {'1': [0]}; only {} is computed here"),
    ],
)
def test_what_the_encoder_does_not_compute_is_refused(tmp_path: Path, values: dict[str, object], said: str) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    tiny.change_config(folder, **values)
    with pytest.raises(UserError, match=re.escape(f"x: {folder / 'config.json'} {said}")):
        pretrained.find_pretrained(str(folder), "x")


def rewrite_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def test_a_weight_that_nobody_takes_is_refused(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    strange = "encoder.layer.0.attention.self.distance_embedding.weight"
    rewrite_weights(folder, lambda weights: weights | {strange: torch.zeros(31, 8)})
    with pytest.raises(UserError, match=f"holds {re.escape(strange)}, which a BERT does not compute with"):
        pretrained.find_pretrained(str(folder), "x").encoder()


def test_old_position_ids_are_no_weight(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    rewrite_weights(folder, lambda weights: weights | {"embeddings.position_ids": torch.arange(32)[None]})
    assert pretrained.find_pretrained(str(folder), "x").encoder() is not None


def join_otherwise(folder: Path) -> None:
    """Leave out what puts [CLS] and [SEP] around texts."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def one_segment(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"type_id": 1', '"type_id": 0'))


@pytest.mark.parametrize("damage", [join_otherwise, one_segment])
def test_a_tokenizer_that_joins_texts_otherwise_is_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    settings = folder / "tokenizer_config.json"  # the library puts its own class right
    settings.write_text(settings.read_text().replace('"BertTokenizer"', '"PreTrainedTokenizerFast"'))
    assert pretrained.find_pretrained(str(folder), "x")
    before = (folder / "tokenizer.json").read_text()
    damage(folder)
    assert (folder / "tokenizer.json").read_text() != before
    with pytest.raises(UserError, match=r"does not give \[CLS\] text \[SEP\] and .* with segments 0 and 1; token"):
        pretrained.find_pretrained(str(folder), "x")
    settings.write_text('{"tokenizer_class": "BertTokenizer"}')  # the cure
    assert same_ids(folder)


def same_ids(folder: Path) -> bool:
    """Tell whether the tokenizer in `folder` reads a pair as the library's BertTokenizer does from its vocabulary."""
    (folder.parent / "plain").mkdir()
    (folder.parent / "plain" / "vocab.txt").write_text("\n".join(tiny.VOCABULARY) + "\n")
    expected = BertTokenizer.from_pretrained(folder.parent / "plain")("w1 w2 ?", "w39")["input_ids"]
    found = pretrained.find_pretrained(str(folder), "x").tokenizer
    return found("w1 w2 ?", "w39")["input_ids"] == expected


def test_vocab_txt_and_a_config_without_model_type_are_a_bert(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    values = tiny.config(folder)
    del values["model_type"]
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(tiny.VOCABULARY) + "\n")
    assert same_ids(folder)


def test_a_tokenizer_named_by_its_slow_class_is_read(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(tiny.VOCABULARY) + "\n")
    for name in ("BertTokenizer", "BertTokenizerFast", "BertTokenizerLegacy"):
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert pretrained.find_pretrained(str(folder), "x").tokenizer.is_fast


def test_embeddings_padded_to_a_multiple_of_eight(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    words, rows = "embeddings.word_embeddings.weight", len(tiny.VOCABULARY)
    for count, fits in ((48, True), (64, True), (47, False), (40, False), (176, False)):
        more = torch.zeros(max(0, count - rows), 16)
        rewrite_weights(folder, lambda weights, more=more: weights | {words: torch.cat([weights[words][:rows], more])})
        tiny.change_config(folder, vocab_size=count)
        if fits:
            assert pretrained.find_pretrained(str(folder), "x").encoder().config.vocab_size == count
        else:
            with pytest.raises(UserError, match=f"has 46 entries, but the model needs {count}"):
                pretrained.find_pretrained(str(folder), "x")


def test_a_row_of_padding_is_no_special_token(tmp_path: Path) -> None:
    """The library adds what a vocabulary lacks at its end, where padded embeddings have rows that mean nothing."""
    folder = tiny.make_bert(tmp_path / "bert")
    drop_vocabulary(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny.VOCABULARY).replace("[CLS]", "<s>") + "\n")
    tiny.change_config(folder, vocab_size=48)
    with pytest.raises(UserError, match=r"x: the tokenizer in .* has no \[CLS\] in its vocabulary"):
        pretrained.find_pretrained(str(folder), "x")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_pretrained_model_as_the_authors_of_bert_stored_it(tmp_path: Path, suffix: str) -> None:
    """With the heads of its pre-training, position_ids, and LayerNorm's weights by their old names."""
    folder = tiny.make_bert(tmp_path / "bert")
    torch.manual_seed(1)
    model = BertForPreTraining(BertConfig.from_pretrained(folder))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights |= {"bert.embeddings.position_ids": torch.arange(32)[None]}
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v for n, v in weights.items()}
    (folder / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(old, folder / "pytorch_model.bin")
    else:
        save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    start = pretrained.find_pretrained(str(folder), "x")
    found = start.encoder().state_dict()
    assert found and all(torch.equal(value, weights[f"bert.{name}"]) for name, value in found.items())
    assert start.notes == []


def test_a_vocabulary_of_chinese_characters(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    drop_vocabulary(folder)
    signs = [chr(0x4E00 + index) for index in range(41)]
    (folder / "vocab.txt").write_text("\n".join([*tiny.VOCABULARY[:5], *signs]) + "\n")
    for settings in ({}, {"do_lower_case": False}):  # the second as bert-base-chinese comes
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = pretrained.find_pretrained(str(folder), "x").tokenizer
        assert tokenizer("\u4e00\u4e02", "\u4e01")["input_ids"] == [2, 5, 7, 3, 6, 3]


def test_a_masked_language_model_gets_a_new_pooler(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    config = BertConfig.from_pretrained(folder)
    model = BertForMaskedLM(config)
    model.save_pretrained(folder)
    start = pretrained.find_pretrained(str(folder), "x")
    encoder = start.encoder()
    assert torch.equal(encoder.encoder.layer[2].output.dense.weight, model.bert.encoder.layer[2].output.dense.weight)
    assert start.notes == ["note: x has no pooler; a new one starts at random"]


@pytest.mark.parametrize("kind, part", [("safetensors", "-{:05}-of-00002"), ("bin", "-{:05}-of-00002"), ("bin", "{}")])
def test_weights_in_several_files(tmp_path: Path, kind: str, part: str) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    whole = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    stem, suffix = whole.split(".")
    halves = [f"{stem}{part.format(number)}.{suffix}" for number in (1, 2)]
    names = sorted(weights)
    places = {name: halves[index % 2] for index, name in enumerate(names)}
    for half in halves:
        part = {name: weights[name] for name in names if places[name] == half}
        save_file(part, folder / half, metadata={"format": "pt"}) if kind == "safetensors" else torch.save(
            part, folder / half
        )
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    start = pretrained.find_pretrained(str(folder), "x")
    encoder = start.encoder().state_dict()
    assert all(torch.equal(encoder[name], value) for name, value in weights.items())
    digest = start.info["ptrain_sha256"]
    with open(folder / halves[1], "ab") as file:
        file.write(b"x")
    assert pretrained.find_pretrained(str(folder), "x").info["ptrain_sha256"] != digest
    (folder / halves[1]).unlink()
    with pytest.raises(UserError, match=f"^x: {folder} holds no {halves[1]}$"):
        pretrained.find_pretrained(str(folder), "x")
    (folder / f"{whole}.index.json").write_text('{"weight_map": [1]}')
    with pytest.raises(UserError, match="^x: .*index.json is no index of weights"):
        pretrained.find_pretrained(str(folder), "x")


def test_one_segment_is_too_few_for_pairs(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    words = "embeddings.token_type_embeddings.weight"
    rewrite_weights(folder, lambda weights: weights | {words: weights[words][:1].clone()})
    tiny.change_config(folder, type_vocab_size=1)
    tiny.make_qqp(tmp_path / "data")
    with pytest.raises(UserError, match="has type_vocab_size 1, but the task has pairs of texts, which need 2$"):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path))


def test_a_moved_start_is_found_by_its_weights(root: Path) -> None:
    (root / "bert").rename(root / "moved")
    tiny.change_config(root / "runs" / "teacher_bert_qqp", ptrain_ver=str(root / "bert"))
    flags = tiny.student_flags(root, total_step=2, warmup_step=1)
    with pytest.raises(
        UserError, match=f"^--teacher_exp teacher: its --ptrain_ver {root / 'bert'}: no such folder; if"
    ):
        tiny.run_script("run_pkd_distill", **flags)
    tiny.run_script("run_pkd_distill", **flags, ptrain_ver=root / "moved")
    tiny.run_script("run_pkd_distill", **flags)  # is finished, wherever that model lies
    rewrite_weights(root / "moved", lambda weights: {name: value + 1 for name, value in weights.items()})
    with pytest.raises(UserError, match="moved: has other weights than the model that the teacher started from$"):
        tiny.run_script("run_pkd_distill", **flags | {"experiment": "other"}, ptrain_ver=root / "moved")


def test_a_teacher_that_keeps_no_checksum_is_told_by_sizes(root: Path) -> None:
    path = root / "runs" / "teacher_bert_qqp" / "config.json"
    saved = json.loads(path.read_text())
    del saved["ptrain_sha256"], saved["config_sha256"]
    path.write_text(json.dumps(saved))
    tiny.make_bert(root / "deep", layers=8)
    with pytest.raises(UserError, match="deep: has num_hidden_layers 8, but the teacher started from one of 4$"):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root), ptrain_ver=root / "deep")


def test_a_random_start_needs_no_pretrained_model(root: Path) -> None:
    tiny.change_config(root / "runs" / "teacher_bert_qqp", ptrain_ver=str(root / "gone"))
    random = {"student_init": "random", "embedding_init": "random"}
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, total_step=2, warmup_step=1, **random))


def test_sizes_are_the_teachers_unless_they_are_given(root: Path) -> None:
    flags = tiny.student_flags(root, total_step=2, warmup_step=1)
    sizes = {flag: flags.pop(flag) for flag in ("d_model", "d_ff", "num_attention_heads")}
    tiny.run_script("run_pkd_distill", **flags)
    saved = tiny.config(root / "runs" / "student_bert_qqp")
    assert {flag: saved[flag] for flag in sizes} == sizes
    assert saved["type_vocab_size"] == 2
    tiny.run_script("run_pkd_distill", **flags, **sizes)  # the same run: it is finished


def test_a_cased_vocabulary_is_cased_where_its_config_says_so(tmp_path: Path) -> None:
    folder = tiny.make_bert(tmp_path / "bert")
    capitalise(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    tokenizer = pretrained.find_pretrained(str(folder), "x").tokenizer
    assert tokenizer.tokenize("W1 w1") == ["W1", "[UNK]"]


def test_a_hub_model_is_found_by_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the hub's own cache, where two commits lie; config.json says which was taken."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    stored = tmp_path / "cache" / "models--some--bert"
    (stored / "refs").mkdir(parents=True)
    for revision, commit, layers in (("main", "a" * 40, 2), ("v2", "b" * 40, 4)):
        (stored / "refs" / revision).write_text(commit)
        tiny.make_bert(stored / "snapshots" / commit, layers=layers)
    for name, commit, layers in (("some/bert", "a" * 40, 2), ("some/bert@v2", "b" * 40, 4)):
        found = pretrained.find_pretrained(name, "x")
        digest = hashlib.sha256((stored / "snapshots" / commit / "model.safetensors").read_bytes()).hexdigest()
        assert (found.config.num_hidden_layers, found.info) == (
            layers,
            {"ptrain_sha256": digest, "ptrain_commit": commit},
        )
    tiny.make_qqp(tmp_path / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, ptrain_ver="some/bert@v2"))
    assert json.loads((tmp_path / "runs/teacher_bert_qqp/config.json").read_text())["ptrain_commit"] == "b" * 40


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only model in the hub's cache, some/bert."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    stored = tmp_path / "cache" / "models--some--bert"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("a" * 40)
    return tiny.make_bert(stored / "snapshots" / ("a" * 40))


def test_a_hub_model_without_a_tokenizer_is_not_taken_from_the_cache(cached: Path) -> None:
    drop_vocabulary(cached)
    with pytest.raises(UserError, match="^x: what could be had of it holds no tokenizer.json or vocab.txt; check the"):
        pretrained.find_pretrained("some/bert", "x")


class Hub(SimpleHTTPRequestHandler):
    """The hub's answers for some/bert, whose files lie in the server's `folder`; paths asked for go into `asked`."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        files = sorted(path.name for path in self.server.folder.iterdir())
        if self.path.startswith("/api/models/some/bert"):
            tree = [{"type": "file", "path": name, "size": 1, "oid": name} for name in files]
            facts = {"id": "some/bert", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in files]}
            body = json.dumps(tree if "/tree/" in self.path else facts).encode()
            self.answer(200, body, {"Content-Type": "application/json"})
        elif self.path.startswith("/some/bert/resolve/") and name in files:
            body = (self.server.folder / name).read_bytes()
            etag = hashlib.sha256(body).hexdigest()
            self.answer(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Let huggingface_hub ask a server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.folder, server.asked = tiny.make_bert(tmp_path / "hub"), []
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


def test_the_hub_is_asked_for_what_its_cache_lacks(cached: Path, hub: ThreadingHTTPServer) -> None:
    drop_vocabulary(cached)
    found = pretrained.find_pretrained("some/bert", "x")
    assert found.folder == cached and found.tokenizer("w1")["input_ids"] == [2, 6, 3]
    assert any(path.endswith("/tokenizer.json") for path in hub.asked)
    assert not any(path.endswith("/model.safetensors") for path in hub.asked)  # which was there
    hub.asked.clear()
    pretrained.find_pretrained("some/bert", "x")
    assert hub.asked == []  # now all is
    shutil.rmtree(cached.parents[2])
    assert pretrained.find_pretrained("some/bert", "x").encoder()
    assert any(path.endswith("/model.safetensors") for path in hub.asked)


@pytest.mark.parametrize("name", ["no-such/bert", "x" * 300])
def test_unknown_hub_name_offline(tmp_path: Path, name: str) -> None:
    tiny.make_qqp(tmp_path / "data")
    with pytest.raises(UserError, match=f"--ptrain_ver {name}: is neither a local folder nor a model that could"):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, ptrain_ver=name))
    assert not (tmp_path / "runs").exists()


def test_too_long_for_the_pretrained_model(fine_tuned: Path, tmp_path: Path) -> None:
    flags = tiny.teacher_flags(fine_tuned, max_seq_len=64, experiment_dir=tmp_path / "runs")
    with pytest.raises(UserError, match="--max_seq_len 64: .* reads at most 32 word pieces"):
        tiny.run_script("run_fine_tune", **flags)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_load_strictly(root: Path, tmp_path: Path) -> None:
    path = root / "runs" / "teacher_bert_qqp" / "model-4.pt"
    weights = tiny.load(path)
    config = tiny.config(path.parent)
    model = bert.BertClassifier(bert.empty_encoder(config["encoder"]), 2, 0)
    old = weights | {"encoder.embeddings.position_ids": torch.arange(32)[None]}  # as old library versions wrote it
    torch.save(old, tmp_path / "old.pt")
    checkpoint.load_weights(model, tmp_path / "old.pt")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    for name, value in {
        "extra": weights | {"encoder.more": torch.zeros(1)},
        "missing": {k: v for k, v in weights.items() if k != "linear_layer.bias"},
        "shape": weights | {"linear_layer.bias": torch.zeros(3)},
        "foreign": {"a": 1},
        "list": [1, 2],
        "numbers": {0: torch.zeros(1)},
    }.items():
        torch.save(value, tmp_path / f"{name}.pt")
        with pytest.raises(UserError, match=f"{name}.pt: (does not fit|holds something else)"):
            checkpoint.load_weights(model, tmp_path / f"{name}.pt")
    for name, content in {"empty": b"", "cut": path.read_bytes()[:5000], "text": b"hello"}.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.pt: is damaged"):
            checkpoint.load_weights(model, tmp_path / f"{name}.pt")


def test_folders_of_the_authors_code_work(root: Path) -> None:
    """No kind, no encoder sizes, no tokenizer in the folder, `position_ids` in the checkpoint."""
    folder = root / "runs" / "teacher_bert_qqp"
    values = tiny.config(folder)
    ours = "kind encoder labels versions data_sha256 method data_dir experiment_dir config_sha256 tokenizer_sha256"
    for name in ours.split():
        values.pop(name, None)
    values["ptrain_ver"] = str(root / "bert")
    (folder / "config.json").write_text(json.dumps(values))
    shutil.rmtree(folder / "tokenizer")
    weights = tiny.load(folder / "model-4.pt")
    torch.save(weights | {"encoder.embeddings.position_ids": torch.arange(32)[None]}, folder / "model-4.pt")
    with pytest.raises(UserError, match="was trained by other code, which cannot be resumed"):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(root))
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    with pytest.raises(UserError, match="--num_hidden_layers 3: must divide the teacher's 4 layers"):
        tiny.run_script("run_lad_distil", **tiny.student_flags(root, num_hidden_layers=3))
    tiny.run_script("run_lad_distil", "--weak_teacher", **tiny.student_flags(root, total_step=1))
    assert (root / "runs" / "student_bert_qqp" / "model-1.pt").is_file()
