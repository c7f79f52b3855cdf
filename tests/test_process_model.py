"""A model is loaded once per process, whoever holds it; its weights count by their content."""

import gc
import pickle
import threading

import pytest

from patchworks.errors import InputError, MissingExtraError
from patchworks.extras import import_extra
from patchworks.fingerprint import digest
from patchworks.process_model import ProcessModel
from patchworks.weights import Weights

LOADS = []


def load(name):
    LOADS.append(name)
    return {"name": name}


def test_equal_ones_share_a_model_that_goes_with_the_last_of_them():
    LOADS.clear()
    first = ProcessModel(load, ("a",))
    second = pickle.loads(pickle.dumps(first))
    with first.use() as one:
        pass
    with second.use() as other:
        assert one is other
    assert LOADS == ["a"]
    with ProcessModel(load, ("b",)).use() as one:
        assert one == {"name": "b"}
    del first, second, one, other
    gc.collect()
    with ProcessModel(load, ("a",)).use():
        assert LOADS == ["a", "b", "a"]


def test_what_is_used_is_not_pickled_nor_part_of_the_fingerprint():
    model = ProcessModel(str, ("c",))
    before = digest(model), pickle.dumps(model)
    with model.use():
        assert (digest(model), pickle.dumps(model)) == before
    assert digest(ProcessModel(str, ("d",))) != before[0]


def test_calls_do_not_overlap():
    model, at_once, most = ProcessModel(load, ("e",)), [0], [0]

    def call():
        for _ in range(200):
            with model.use():
                at_once[0] += 1
                most[0] = max(most[0], at_once[0])
                at_once[0] -= 1

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_weights_count_by_content(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    first = Weights.at(file, "model")
    assert Weights.at(file, "model") == first
    file.write_bytes(b"two")
    second = Weights.at(file, "model")
    assert first.path == second.path == str(file)
    assert digest(first) != digest(second)


@pytest.mark.parametrize("place, found", [("nowhere", "nothing at"), ("", "a folder at")])
def test_weights_that_are_not_there(tmp_path, place, found):
    with pytest.raises(InputError, match=f"model .*: {found} .*; expected a file of weights"):
        Weights.at(tmp_path / place, "model")


def test_an_extra_that_is_missing_names_the_line_to_install(tmp_path, monkeypatch):
    with pytest.raises(MissingExtraError, match=r"pip install 'patchworks\[torch\]'"):
        import_extra("torch_that_is_not_there", "torch", "torch_fn")
    (tmp_path / "broken_package.py").write_text("import torch_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match="is installed but cannot be imported"):
        import_extra("broken_package", "torch", "torch_fn")
