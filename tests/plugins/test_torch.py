"""`torch_fn` with networks that real torch trains, writes and runs.

These tests need torch, which the lock file does not have. In an environment of the lock file::

    python -m pip install "torch==2.13.0"
    python -m pytest -m slow -s tests/plugins/test_torch.py

Without torch they are skipped; with a torch that cannot be imported they fail.
"""

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
from scipy import ndimage

from patchworks import plan_run, tile_process
from patchworks.errors import InputError, SegmenterError
from patchworks.fingerprint import digest
from patchworks.plugins.torch import torch_fn
from tests import cells, nuclei
from tests.networks import loads, noting

if find_spec("torch") is None:
    pytest.skip("torch is not installed", allow_module_level=True)

import torch

pytestmark = [
    pytest.mark.slow,
    # What users have is TorchScript, which torch calls deprecated wherever it is made.
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]

TILES = {"tile_shape": (128, 128), "overlap": 32, "progress": False}
CENTRES = {"activation": "sigmoid", "postprocess": "watershed", "seed_channel": 1}
FORMATS = ["traced.pt", "scripted.pt", "exported.pt2"]


class SmallUNet(torch.nn.Module):
    """Two levels; foreground and insides of the nuclei, as logits."""

    def __init__(self, n_filters=12):
        super().__init__()
        self.above = self.convolutions(1, n_filters)
        self.below = self.convolutions(n_filters, 2 * n_filters)
        self.merged = self.convolutions(3 * n_filters, n_filters)
        self.last = torch.nn.Conv2d(n_filters, 2, 1)

    @staticmethod
    def convolutions(n_in, n_out):
        first, second = (torch.nn.Conv2d(n, n_out, 3, padding=1) for n in (n_in, n_out))
        return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU())

    def forward(self, x):
        above = self.above(x)
        below = self.below(torch.nn.functional.max_pool2d(above, 2))
        grown = torch.nn.functional.interpolate(below, scale_factor=2.0, mode="nearest")
        return self.last(self.merged(torch.cat([above, grown], 1)))


def batch(seed):
    image, labels = nuclei.make((96, 96), seed)
    low, high = np.percentile(image, (1, 99.8))
    inside = np.zeros(labels.shape, bool)
    for each in range(1, labels.max() + 1):
        inside |= ndimage.binary_erosion(labels == each, iterations=3)
    return (image - low) / (high - low), np.stack([labels > 0, inside])


@pytest.fixture(scope="module")
def network():
    """A network, trained here on images made here, for less than a minute."""
    torch.manual_seed(0)
    made, batches = SmallUNet(), [batch(seed) for seed in range(16)]
    images = torch.tensor(np.stack([x for x, _ in batches])[:, None], dtype=torch.float32)
    wanted = torch.tensor(np.stack([y for _, y in batches]), dtype=torch.float32)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(160):
        which = torch.randint(0, 16, (4,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            made(images[which]), wanted[which]
        )
        loss.backward()
        optimizer.step()
    print(f"\ntrained: loss {loss.item():.3f}")
    return made.eval()


def export(network, example, path):
    """Write a network in the way that the file's name says."""
    if path.name.startswith("traced"):
        torch.jit.trace(network, example).save(path)
    elif path.name.startswith("scripted"):
        torch.jit.script(network).save(path)
    else:
        space = dict.fromkeys(range(2, example.ndim), torch.export.Dim.AUTO)
        program = torch.export.export(network, (example,), dynamic_shapes=(space,))
        torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def files(network, tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    return {name: export(network, torch.zeros(1, 1, 96, 96), folder / name) for name in FORMATS}


@pytest.fixture(scope="module")
def scan():
    return nuclei.make((640, 600), seed=100)


# --- tiled is untiled ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_tiled_it_finds_what_it_finds_in_the_whole_image(files, scan, name):
    image, truth = scan
    segment = torch_fn(files[name], min_size=20, **CENTRES)
    whole = segment.prepare(image.ravel())(image)
    tiled = np.asarray(tile_process(image, segment, **TILES))
    score = cells.agreement(whole, tiled)
    right = cells.agreement(truth, tiled, iou=0.7)
    print(f"\n{name}: tiled against whole, F1 at IoU 0.9: {score}; of the truth at 0.7: {right}")
    assert score["f1"] > 0.99
    assert right["f1"] > 0.95


@pytest.mark.parametrize(
    "keywords",
    [
        {"postprocess": "distance transform", "seed_distance": 5},
        {"postprocess": "threshold", "foreground_channels": [1]},
        {"postprocess": "watershed", "seed_threshold": 0.95},
        {"postprocess": "watershed", "seed_channel": 1, "seed_distance": 4},
    ],
    ids=lambda keywords: keywords["postprocess"],
)
def test_so_it_does_with_every_post_processing(files, scan, keywords):
    image, truth = scan
    segment = torch_fn(files["traced.pt"], activation="sigmoid", min_size=20, **keywords)
    whole = segment.prepare(image.ravel())(image)
    tiled = np.asarray(tile_process(image, segment, **TILES))
    score, right = cells.agreement(whole, tiled), cells.agreement(truth, tiled, iou=0.7)
    print(f"\n{keywords}: F1 at IoU 0.9: {score}; of the truth at 0.7: {right}")
    assert score["f1"] > 0.98


def test_normalized_tile_by_tile_it_does_not(files, scan):
    image, _ = scan
    segment = torch_fn(files["traced.pt"], min_size=20, **CENTRES)
    whole = segment.prepare(image.ravel())(image)
    scores = {
        "global": cells.agreement(whole, np.asarray(tile_process(image, segment, **TILES))),
        "per tile": cells.agreement(
            whole, np.asarray(tile_process(image, lambda tile: segment(tile), **TILES))
        ),
    }
    print(f"\nnormalization, F1 at IoU 0.9: {scores}")
    assert scores["per tile"]["f1"] < scores["global"]["f1"]


def test_three_axes_and_two_channels(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.avg_pool3d(x.mean(1, keepdim=True), 3, 1, 1)

    image = np.stack([cells.make((40, 60, 70), 14, seed, spread=0.3) for seed in (1, 1)])
    path = export(Mean().eval(), torch.zeros(1, 2, 16, 16, 16), tmp_path / "exported.pt2")
    segment = torch_fn(path, threshold=0.3, low_percentile=0, high_percentile=100)
    segment = segment.prepare(image.reshape(2, -1))
    found = segment(image)
    mean = ndimage.uniform_filter(image[0] / image[0].max(), 3)
    inside = (slice(2, -9),) * 3
    np.testing.assert_array_equal(found[inside] > 0, mean[inside] > 0.3)


# --- a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_each_worker_process_loads_it_once(files, scan, tmp_path, name):
    image, _ = scan
    segment = noting(torch_fn(files[name], **CENTRES), tmp_path / "notes")
    here = np.asarray(tile_process(image, segment, engine="threads", **TILES))
    assert loads(tmp_path / "notes") == {os.getpid(): 1}
    there = np.asarray(tile_process(image, segment, engine="processes", max_workers=2, **TILES))
    found = loads(tmp_path / "notes")
    print(f"\n{name}: loads per process {dict(found)}")
    assert set(found.values()) == {1}
    assert 2 <= len(found) <= 3
    assert cells.agreement(here, there)["f1"] == 1


def test_a_probe_measures_it(files, scan, tmp_path):
    segment = noting(torch_fn(files["exported.pt2"], **CENTRES), tmp_path / "notes")
    proposal = plan_run(scan[0], segment, probe=True, probe_seconds=10)
    print(f"\n{proposal}")
    assert proposal.probe.need.seconds_per_voxel > 0
    assert loads(tmp_path / "notes") == {os.getpid(): 1}


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_tile_gives_the_same_labels(files, scan, name):
    image = scan[0][:200, :150]
    segment = torch_fn(files[name], **CENTRES)
    found = [segment(image) for _ in range(5)]
    again = pickle.loads(pickle.dumps(segment))
    assert digest(again) == digest(segment) == digest(torch_fn(files[name], **CENTRES))
    for labels in [*found, again(image), torch_fn(files[name], **CENTRES)(image)]:
        np.testing.assert_array_equal(labels, found[0])


def test_half_precision_and_other_types(tmp_path, network):
    half = SmallUNet().to(torch.bfloat16).eval()
    half.load_state_dict(network.state_dict())
    export(half, torch.zeros(1, 1, 32, 32, dtype=torch.bfloat16), tmp_path / "traced.pt")
    image, _ = nuclei.make((96, 96), seed=3)
    export(network, torch.zeros(1, 1, 32, 32), tmp_path / "traced2.pt")
    exact = torch_fn(tmp_path / "traced2.pt", **CENTRES)(image)
    found = torch_fn(tmp_path / "traced.pt", dtype="bfloat16", **CENTRES)(image)
    assert cells.agreement(exact, found, iou=0.7)["f1"] > 0.9
    same = export(torch.nn.Identity(), torch.zeros(1, 1, 32, 32), tmp_path / "traced3.pt")
    numbers = np.arange(256, dtype=">u2").reshape(16, 16)
    numbers.setflags(write=False)
    for dtype in ("float32", "float64", "float16", "int16", "int32", "int64"):
        keywords = {"normalize": "none", "postprocess": "labels", "dtype": dtype}
        np.testing.assert_array_equal(torch_fn(same, **keywords)(numbers), numbers)


# --- what is wrong ------------------------------------------------------------------------------


def test_a_fixed_size_is_named_with_the_way_out(tmp_path):
    program = torch.export.export(torch.nn.Conv2d(1, 1, 3, padding=1), (torch.zeros(1, 1, 64, 64),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    segment = torch_fn(tmp_path / "fixed.pt2")
    assert segment(np.zeros((64, 64))).shape == (64, 64)
    with pytest.raises(SegmenterError, match=r"\(1, 1, 64, 96\).*dynamic_shapes"):
        segment(np.zeros((64, 96)))


def test_what_the_network_does_not_take_is_named(files, tmp_path):
    with pytest.raises(SegmenterError, match=r"input of shape \(1, 1, 16, 64, 64\).*slice_wise"):
        torch_fn(files["traced.pt"])(np.zeros((5, 64, 64)))
    with pytest.raises(SegmenterError, match=r"input of shape \(1, 2, 64, 64\) float32"):
        torch_fn(files["scripted.pt"]).segment_view(np.zeros((2, 64, 64)), ((0, 0),) * 2)
    pool = export(torch.nn.MaxPool2d(2), torch.zeros(1, 1, 32, 32), tmp_path / "traced.pt")
    with pytest.raises(
        SegmenterError, match=r"output of shape \(1, 1, 32, 32\) .*\(1, K, 64, 64\)"
    ):
        torch_fn(pool)(np.zeros((64, 64)))
    with pytest.raises(SegmenterError, match=r"2 channels of .* boundary channel 2"):
        torch_fn(files["traced.pt"], boundary_channel=2)(np.zeros((64, 64)))
    with pytest.raises(SegmenterError, match="1 outputs; expected one numbered output=1"):
        torch_fn(files["traced.pt"], output=1)(np.zeros((64, 64)))


@pytest.mark.parametrize("keywords", [{"dtype": "int4"}, {"device": 0}], ids=str)
def test_a_bad_parameter_is_refused_before_any_work(files, keywords):
    with pytest.raises(InputError, match=f"{next(iter(keywords))}="):
        torch_fn(files["traced.pt"], **keywords)


# --- pickles ------------------------------------------------------------------------------------


class Evil:
    """Makes a folder wherever it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("what", ["state dict", "module", "old"])
def test_a_pickle_is_refused_unread_and_how_to_export_is_said(tmp_path, network, what):
    saved = {"state dict": network.state_dict(), "module": torch.nn.ReLU(), "old": {}}[what]
    bomb = {"weights": saved, "evil": Evil(tmp_path / "made")}
    torch.save(bomb, tmp_path / "m.pt", _use_new_zipfile_serialization=what != "old")
    with pytest.raises(InputError, match=r"torch\.jit\.script.*torch\.export\.save"):
        torch_fn(tmp_path / "m.pt")
    assert not (tmp_path / "made").exists()


def rewritten(path, to, replaced, added=()):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            ending = name.partition("/")[2]
            new.writestr(name, replaced.get(ending, old.read(name)))
        for name, content in added:
            new.writestr(f"{old.namelist()[0].partition('/')[0]}/{name}", content)
    return to


def test_pickles_within_an_exported_program_are_never_run(files, tmp_path):
    saved = io.BytesIO()
    torch.save(Evil(tmp_path / "made"), saved)
    place = "data/sample_inputs/model.pt"
    bad = rewritten(files["exported.pt2"], tmp_path / "bad.pt2", {place: saved.getvalue()})
    with pytest.raises(SegmenterError):
        torch_fn(bad)(np.zeros((64, 64)))
    assert not (tmp_path / "made").exists()
    evil = pickle.dumps(Evil(tmp_path / "made"))
    for added in ("data/constants/opaque_obj_0", "data/aotinductor/model/x.so"):
        bad = rewritten(files["exported.pt2"], tmp_path / "b.pt2", {}, [(added, evil)])
        with pytest.raises(InputError, match=r"could run any code; expected a graph and tensors"):
            torch_fn(bad)
    # It would be torch that runs it.
    with warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(tmp_path / "bad.pt2")
    assert (tmp_path / "made").exists()
