"""How teacher and student start, tensor by tensor, and which checkpoints load."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

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
    saved = json.loads((root / "runs" / "student_bert_qqp" / "config.json").read_text())
    assert saved["encoder"]["max_position_embeddings"] == tiny.SEQ_LEN
    assert saved["encoder"]["hidden_dropout_prob"] == saved["encoder"]["attention_probs_dropout_prob"] == 0.25
    assert (saved["kind"], saved["num_class"], saved["max_seq_len"], saved["dataset"]) == ("student", 2, 16, "train")


def test_teacher_encoder_keeps_its_own_dropout(tmp_path: Path) -> None:
    tiny.make_bert(tmp_path / "bert", dropout=0.3)
    tiny.make_qqp(tmp_path / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, total_step=1, dropout=0.05))
    saved = json.loads((tmp_path / "runs" / "teacher_bert_qqp" / "config.json").read_text())
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
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "roberta"}))


def capitalise(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(word.replace("w", "W") for word in tiny.VOCABULARY) + "\n")


def drop_layer(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layer.2." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


BROKEN = {
    "no vocabulary": (drop_vocabulary, "holds no tokenizer.json or vocab.txt"),
    "short vocabulary": (shorten_vocabulary, "has 45 entries, but the model needs 46"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors or pytorch"),
    "cut weights": (lambda folder: (folder / "model.safetensors").write_bytes(b"\x08"), "cannot be loaded"),
    "a layer missing": (drop_layer, "lacks 16 of BERT's weights, encoder.layer.2."),
    "config no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "a cased vocabulary": (
        capitalise,
        "is cased, but its tokenizer lower-cases all texts; it needs a tokenizer_config",
    ),
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
        assert (found.config.num_hidden_layers, found.info) == (layers, {"ptrain_commit": commit})
    tiny.make_qqp(tmp_path / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, ptrain_ver="some/bert@v2"))
    assert json.loads((tmp_path / "runs/teacher_bert_qqp/config.json").read_text())["ptrain_commit"] == "b" * 40


def test_unknown_hub_name_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.make_qqp(tmp_path / "data")
    with pytest.raises(UserError, match="--ptrain_ver no-such/bert: is neither a local folder nor a model that could"):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(tmp_path, ptrain_ver="no-such/bert"))
    assert not (tmp_path / "runs").exists()


def test_too_long_for_the_pretrained_model(fine_tuned: Path, tmp_path: Path) -> None:
    flags = tiny.teacher_flags(fine_tuned, max_seq_len=64, experiment_dir=tmp_path / "runs")
    with pytest.raises(UserError, match="--max_seq_len 64: .* reads at most 32 word pieces"):
        tiny.run_script("run_fine_tune", **flags)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_load_strictly(root: Path, tmp_path: Path) -> None:
    path = root / "runs" / "teacher_bert_qqp" / "model-4.pt"
    weights = tiny.load(path)
    config = json.loads((path.parent / "config.json").read_text())
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
    values = json.loads((folder / "config.json").read_text())
    for name in ("kind", "encoder", "labels", "versions", "data_sha256", "method", "data_dir", "experiment_dir"):
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
