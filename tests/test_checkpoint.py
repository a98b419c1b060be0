"""Checkpoint files: any damage is found or changes nothing, and what old versions of torch wrote is still read."""

import io
import zipfile
from pathlib import Path

import pytest
import torch

from fine_tune.core.errors import UserError
from fine_tune.training import checkpoint

WEIGHTS = {"encoder.weight": torch.arange(6.0).view(2, 3), "linear_layer.bias": torch.tensor([0.5, -0.5])}


def same(found: object) -> bool:
    """Tell whether `found` is WEIGHTS, to the last bit."""
    if not isinstance(found, dict) or list(found) != list(WEIGHTS):
        return False
    return all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in WEIGHTS.items())


def flips(content: bytes) -> list[bytes]:
    """Return `content` with one bit flipped, once for each byte; which bit varies."""
    return [
        content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]
        for place in range(len(content))
    ]


def test_every_flipped_byte_is_found_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "model-1.pt"
    checkpoint.save(path, WEIGHTS)
    content, refused = path.read_bytes(), 0
    assert same(checkpoint.load(path))
    for spoilt in flips(content):
        path.write_bytes(spoilt)
        try:
            assert same(checkpoint.load(path))
        except UserError:
            refused += 1
    assert refused > 24 + 8  # at least the bytes of the numbers themselves


def test_negative_control_torch_alone_reads_a_flipped_number(tmp_path: Path) -> None:
    """Without our look at the checksums the test above would fail."""
    path = tmp_path / "model-1.pt"
    checkpoint.save(path, WEIGHTS)
    content = bytearray(path.read_bytes())
    content[content.index(WEIGHTS["encoder.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert not same(torch.load(path, weights_only=True))
    with pytest.raises(UserError, match="model-1.pt: is damaged or no checkpoint of tensors"):
        checkpoint.load(path)


def test_records_with_external_attributes_are_refused(tmp_path: Path) -> None:
    """One such byte makes torch return memory that was never filled, and changes no checksum."""
    path = tmp_path / "model-1.pt"
    checkpoint.save(path, WEIGHTS)
    whole = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as archive:
        for record in whole.infolist():
            record.external_attr = 16  # a folder, to those who look at it
            archive.writestr(record, whole.read(record.filename))
    with pytest.raises(UserError, match="model-1.pt: is damaged"):
        checkpoint.load(path)


def test_a_file_without_checksums_is_read_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "model-1.pt"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)  # as torch below 1.6 wrote it
    assert same(checkpoint.load(path))
    assert f"{path}: was saved without checksums by an old torch" in capsys.readouterr().err
    checkpoint.save(path, WEIGHTS)
    checkpoint.load(path)
    assert not capsys.readouterr().err
