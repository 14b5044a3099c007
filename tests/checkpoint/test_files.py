import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

import rmsprop
import rmsprop.torch
from rmsprop.checkpoint import of, read, save
from tests.checkpoint.test_recorded import FOLDER


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_file_executes_code(tmp_path, capsys):
    state = torch.optim.RMSprop([torch.ones(2, requires_grad=True)]).state_dict()
    torch.save({"optimizer": state, "x": Evil()}, tmp_path / "a.pt")
    torch.save({"optimizer": state, "x": Evil()}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pt").write_bytes(pickle.dumps(Evil(), protocol=4))
    np.savez(tmp_path / "d.npz", **{"w/RMSProp": np.array([Evil()], dtype=object)})
    for name in ("a.pt", "b.pt", "c.pt", "d.npz"):
        with pytest.raises(ValueError, match=name):
            read(tmp_path / name)
    assert capsys.readouterr().out == ""


def test_old_and_new_files_of_torch_save(tmp_path):
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = rmsprop.torch.RMSprop([("p", p)], dialect="keras")
    p.grad = torch.ones(3)
    optimizer.step()
    for new in (True, False):
        torch.save(optimizer.state_dict(), tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        source = read(tmp_path / "x.pt", lr=0.5)
        assert (source.kind, source.library) == ("file of torch.save", "rmsprop")
        assert source.checkpoint.rule == rmsprop.dialect("keras", lr=0.5)


def test_a_stable_baselines3_model(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("data", "{}")
        torch.save(torch.load(FOLDER / "sb3.pt")["optimizer"], tmp_path / "x.pt")
        archive.write(tmp_path / "x.pt", "policy.optimizer.pth")
    source = read(tmp_path / "model.zip")
    assert (source.kind, source.library) == ("stable-baselines3 model", "sb3")
    assert source.checkpoint.rule.epsilon_mode == "inside"
    with zipfile.ZipFile(tmp_path / "a2c.zip", "w") as archive:  # its default is torch's own
        torch.save(torch.load(FOLDER / "torch.pt")["optimizer"], tmp_path / "x.pt")
        archive.write(tmp_path / "x.pt", "policy.optimizer.pth")
    assert read(tmp_path / "a2c.zip").library == "torch"


def test_named_arrays_in_safetensors(tmp_path):
    with np.load(FOLDER / "tf1.slots.npz") as file:
        save_file(dict(file), tmp_path / "x.safetensors")
    source = read(tmp_path / "x.safetensors", learning_rate=0.1, momentum=0.9)
    assert (source.library, sorted(source.checkpoint.names)) == ("tf1", ["b", "w"])


def test_a_run_of_rmsprop_train(tmp_path):
    x = np.linspace(-1, 1, 50)
    model = rmsprop.fit({"x": x}, x**2, epochs=3, hidden=(4,), out=tmp_path / "run", momentum=0.9, cooldown=0.0)
    source = read(tmp_path / "run")
    assert source.kind == "checkpoint of rmsprop train"
    assert source.checkpoint.names == tuple(name for name, _ in model.network.named_parameters())
    for name, p in model.network.named_parameters():
        assert source.checkpoint.state[name]["momentum_buffer"].shape == tuple(p.shape)
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint.safetensors: damaged: tensor .* does not match its checksum"):
        read(tmp_path / "run")
    assert "damaged" in read(tmp_path / "run", strict=False).checkpoint.notes[-1]
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"expected config.json, which has its rule, beside it"):
        read(tmp_path / "run")


@pytest.mark.parametrize("library", ["torch", "keras"])
def test_a_library_that_does_not_fit(library, tmp_path):
    save(tmp_path / "x.safetensors", rmsprop.RMSprop({"w": np.ones(2)}))
    with pytest.raises(ValueError, match=f"dialect '{library}': this is a file of rmsprop"):
        read(tmp_path / "x.safetensors", library=library)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a checkpoint that is known here"),
        (b"hello world, this is text", "not a checkpoint that is known here"),
        (b"\x89HDF\r\n\x1a\n torn", "x.bin: damaged, or of another kind"),
        (b"\x80\x02 torn", "x.bin: damaged, or of another kind"),
        (b"PK\x03\x04 torn", "not a checkpoint that is known here"),
        (json.dumps({"a": 1}).encode(), "not a checkpoint that is known here"),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff{}", "x.bin: damaged, or of another kind"),
    ],
)
def test_what_is_no_checkpoint(content, message, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_other_arrays_and_torn_archives(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(2))
    with pytest.raises(ValueError, match=r"arrays named \['a'\]: expected TensorFlow 1's /RMSProp slots"):
        read(tmp_path / "x.npz")
    content = bytearray((FOLDER / "tf1.slots.npz").read_bytes())
    content[200] ^= 255
    (tmp_path / "y.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"y.npz: damaged"):
        read(tmp_path / "y.npz", learning_rate=0.1, momentum=0.9)
    content = (FOLDER / "torch.pt").read_bytes()
    (tmp_path / "z.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"z.pt: "):
        read(tmp_path / "z.pt")
    torch.save(torch.ones(2), tmp_path / "t.pt")
    with pytest.raises(ValueError, match="a Tensor: expected a dict with an optimizer's state_dict"):
        read(tmp_path / "t.pt")


def test_live_and_file_are_the_same(tmp_path):
    optimizer = rmsprop.RMSprop({"w": np.ones(3)}, momentum=0.5)
    optimizer.step({"w": np.ones(3)})
    save(tmp_path / "x.safetensors", optimizer)
    found = read(tmp_path / "x.safetensors").checkpoint
    assert found.groups == of(optimizer).groups
    np.testing.assert_array_equal(found.state["w"]["square_avg"], of(optimizer).state["w"]["square_avg"])
