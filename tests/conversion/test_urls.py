"""Object stores and memory, as source and as target, against a real server on this machine."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import boto3
import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from botocore.config import Config
from moto.server import ThreadedMotoServer

from patchworks.conversion import pyramid as add
from patchworks.conversion import regions
from patchworks.errors import (
    ImageReadError,
    InputError,
    SourceNotFoundError,
    TargetExistsError,
    TargetNotWritableError,
)
from patchworks.geometry import image_pyramid
from patchworks.io.location import Location
from patchworks.plugins.ome_zarr import add_pyramid, to_ome_zarr, write_labels
from patchworks.readers.array import ArrayReader
from patchworks.readers.ome_zarr import ZarrReader
from patchworks.steps.pyramid import pool_image, pool_labels
from tests.conversion.test_collection import SCANS, check_collection, collection
from tests.conversion.written import (
    check_beyond_validators,
    check_pyramid,
    levels,
    multiscale,
    ome,
    placed,
)

VOXELS = np.random.default_rng(3).integers(0, 60000, (2, 50, 30), dtype="uint16")
SIZE = {"z": 2.0, "y": 0.5, "x": 0.5}
QUIET = {"progress": False}
OPTIONS = {"pixel_size": SIZE, "n_levels": 3, "chunks": (1, 32, 32), "max_workers": 1, **QUIET}
BUCKET = "images"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 server, and the environment that a user sets for it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("AWS_ACCESS_KEY_ID", "testing")
        env.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        env.setenv("AWS_DEFAULT_REGION", "us-east-1")
        env.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield f"http://{host}:{port}"
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with warnings.catch_warnings():
        # s3fs leaves its sessions to be closed by the interpreter's end.
        warnings.filterwarnings("ignore", "Unclosed", ResourceWarning)
        gc.collect()
    server.stop()


class Bucket:
    """What another program sees of a bucket: nothing is cached."""

    def __init__(self, endpoint: str) -> None:
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        quick = Config(retries={"max_attempts": 1})
        self.client = boto3.client("s3", endpoint_url=endpoint, config=quick, **keys)
        self.client.create_bucket(Bucket=BUCKET)

    def keys(self, prefix: str = "") -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def put(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)

    def copy(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder)}", path.read_bytes())

    def contents(self, prefix: str = "") -> dict[str, bytes]:
        return {key: self.get(key) for key in self.keys(prefix)}

    def shows_an_image(self, prefix: str) -> bool:
        """Whether metadata of any group or array say that there is an image."""
        names = {"zarr.json", ".zattrs", ".zgroup"}
        found = [key for key in self.keys(prefix) if key.rpartition("/")[2] in names]
        return any(b"multiscales" in self.get(key) for key in found)


@pytest.fixture(scope="module")
def bucket(endpoint) -> Bucket:
    return Bucket(endpoint)


@pytest.fixture
def folder(bucket) -> str:
    """A prefix of the test's own."""
    return f"{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["s3", "memory"])
def url(request) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('folder')}"
    return f"memory://{uuid.uuid4().hex}"


def small(n_bytes: int = 2048):
    return mock.patch.multiple(image_pyramid, REGION_BYTES=n_bytes, MAX_REGION_BYTES=4 * n_bytes)


def listed(url: str) -> None:
    """List a folder as a user does in the same process: fsspec remembers the answer."""
    filesystem, path = fsspec.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.find(path)
        filesystem.ls(path)


@pytest.mark.parametrize(("version", "shard"), [("0.4", False), ("0.5", True)])
def test_an_array_goes_to_a_url(url, version, shard):
    target = f"{url}/a.ome.zarr"
    with small():
        made = to_ome_zarr(VOXELS, target, ngff_version=version, shard=shard, **OPTIONS)
    assert made == target
    check_pyramid(target, VOXELS, 2)
    check_beyond_validators(target)
    assert placed(target)[0][0] == [2.0, 0.5, 0.5]
    assert multiscale(target)["name"] == "a"
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    assert [name.rpartition("/")[2] for name in filesystem.ls(path, detail=False)] == ["a.ome.zarr"]


def test_an_image_goes_from_url_to_url(url, tmp_path):
    to_ome_zarr(VOXELS, f"{url}/a.ome.zarr", **OPTIONS)
    to_ome_zarr(f"{url}/a.ome.zarr", f"{url}/b.ome.zarr", n_levels=2, ngff_version="0.4", **QUIET)
    to_ome_zarr(f"{url}/b.ome.zarr", tmp_path / "c.ome.zarr", n_levels=4, **QUIET)
    to_ome_zarr(f"{url}/a.ome.zarr", tmp_path / "d.ome.zarr", reuse_pyramid=True, **QUIET)
    check_pyramid(f"{url}/b.ome.zarr", VOXELS, 2)
    check_pyramid(tmp_path / "c.ome.zarr", VOXELS, 2)
    check_pyramid(tmp_path / "d.ome.zarr", VOXELS, 2)
    assert placed(tmp_path / "c.ome.zarr")[0][0] == [2.0, 0.5, 0.5]


def test_the_same_bytes_go_to_a_bucket_as_to_a_folder(bucket, folder, tmp_path):
    to_ome_zarr(VOXELS, f"s3://{folder}/a.ome.zarr", **OPTIONS)
    to_ome_zarr(VOXELS, tmp_path / "a.ome.zarr", **OPTIONS)
    inside = folder.removeprefix(f"{BUCKET}/") + "/a.ome.zarr/"
    there = {k.removeprefix(inside): held for k, held in bucket.contents(inside).items()}
    here = tmp_path / "a.ome.zarr"
    files = {str(p.relative_to(here)): p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert there.keys() == files.keys()
    for name in files:
        if name.endswith("zarr.json"):
            assert json.loads(there[name]) == json.loads(files[name])


def test_the_same_call_again_writes_nothing(bucket, folder):
    target = f"s3://{folder}/a.ome.zarr"
    to_ome_zarr(VOXELS, target, **OPTIONS)
    writes = mock.patch.object(zarr.storage.FsspecStore, "set", side_effect=AssertionError)
    before = bucket.contents(folder.removeprefix(f"{BUCKET}/"))
    with writes:
        to_ome_zarr(VOXELS, target, **OPTIONS)
        to_ome_zarr(VOXELS, target, overwrite=True, **OPTIONS)
    assert bucket.contents(folder.removeprefix(f"{BUCKET}/")) == before


def test_another_image_is_replaced_only_when_told(url):
    target = f"{url}/a.ome.zarr"
    to_ome_zarr(VOXELS, target, **{**OPTIONS, "n_levels": 4})
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        to_ome_zarr(VOXELS + 1, target, **OPTIONS)
    check_pyramid(target, VOXELS, 2)
    to_ome_zarr(VOXELS + 1, target, overwrite=True, **OPTIONS)
    check_pyramid(target, VOXELS + 1, 2)
    filesystem, path = fsspec.url_to_fs(target, use_listings_cache=False)
    assert not filesystem.exists(f"{path}/3")  # nothing is left of what was there


def test_what_is_no_image_is_never_replaced(bucket, folder):
    inside = folder.removeprefix(f"{BUCKET}/")
    bucket.put(f"{inside}/a.ome.zarr/notes.txt", b"of years")
    before = bucket.contents(inside)
    with pytest.raises(TargetExistsError, match="never replaced"):
        to_ome_zarr(VOXELS, f"s3://{folder}/a.ome.zarr", overwrite=True, **OPTIONS)
    assert bucket.contents(inside) == before


def failing_once(at: int, seen: list, look=lambda: None):
    """Return a `_read` of arrays that looks around, and fails at its `at`-th call."""
    read = ArrayReader._read

    def reading(self, box, level):
        look()
        seen.append(box.start)
        if len(seen) == at:
            raise OSError("the disk is gone")
        return read(self, box, level)

    return mock.patch.object(ArrayReader, "_read", reading)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_interrupted_conversion_goes_on_and_is_not_seen_before(bucket, folder, version):
    target, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    keywords = {**OPTIONS, "ngff_version": version}
    seen: list = []

    def look():
        assert not bucket.shows_an_image(inside)

    listed(f"s3://{BUCKET}")
    with small(), failing_once(3, seen, look):
        with pytest.raises(ImageReadError, match="the disk is gone"):
            to_ome_zarr(VOXELS, target, **keywords)
        look()
        with pytest.raises(SourceNotFoundError):
            write_labels(target, (VOXELS > 9).astype("uint8"), **QUIET)
        listed(f"s3://{folder}")  # what is listed now is outdated soon
        to_ome_zarr(VOXELS, target, **keywords)
    assert len(seen) == len(set(seen)) + 1  # only what failed was read again
    check_pyramid(target, VOXELS, 2)
    assert not [key for key in bucket.keys(inside) if not key.startswith(f"{inside}/a.ome.zarr/")]
    listed(f"s3://{folder}")
    with small():
        to_ome_zarr(VOXELS, target, **keywords)
    assert b"patchworks-partial" not in b"".join(bucket.contents(inside).values())


def test_killed_before_it_is_published_it_goes_on(bucket, folder):
    target, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    gone = mock.patch.object(regions, "publish", side_effect=KeyboardInterrupt)
    with gone, pytest.raises(KeyboardInterrupt):
        to_ome_zarr(VOXELS, target, **OPTIONS)
    assert not bucket.shows_an_image(inside)
    listed(f"s3://{folder}")
    with mock.patch.object(ArrayReader, "_read", side_effect=AssertionError("read again")):
        to_ome_zarr(VOXELS, target, **OPTIONS)
    check_pyramid(target, VOXELS, 2)


def test_what_is_done_is_forgotten_with_the_target(bucket, folder):
    """Else what was written before, and deleted since, would be missing in silence."""
    target, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    bucket.put(f"{inside}/other.txt", b"1")
    listed(f"s3://{folder}")
    with small():
        with failing_once(4, []), pytest.raises(ImageReadError):
            to_ome_zarr(VOXELS, target, **OPTIONS)
        for key in bucket.keys(f"{inside}/a.ome.zarr/"):
            bucket.client.delete_object(Bucket=BUCKET, Key=key)
        to_ome_zarr(VOXELS, target, **OPTIONS)
    check_pyramid(target, VOXELS, 2)
    assert not [key for key in bucket.keys(inside) if ".stage" in key]


def test_other_options_do_not_go_on_from_what_is_there(bucket, folder):
    target, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    with small(), failing_once(2, []), pytest.raises(ImageReadError):
        to_ome_zarr(VOXELS, target, **{**OPTIONS, "n_levels": 4})
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        to_ome_zarr(VOXELS, target, **OPTIONS)
    listed(f"s3://{folder}")
    to_ome_zarr(VOXELS, target, overwrite=True, **OPTIONS)
    check_pyramid(target, VOXELS, 2)
    assert not [key for key in bucket.keys(inside) if "/3/" in key and "a.ome.zarr/3" in key]


def test_an_image_that_another_program_put_there_is_seen(bucket, folder, tmp_path):
    """fsspec answers from listings that it made before: they must not be asked."""
    target, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    bucket.put(f"{inside}/other.txt", b"1")
    listed(f"s3://{folder}")
    to_ome_zarr(VOXELS, tmp_path / "a.ome.zarr", **OPTIONS)
    bucket.copy(tmp_path / "a.ome.zarr", f"{inside}/a.ome.zarr")
    with pytest.raises(TargetExistsError, match="overwrite=True"):
        to_ome_zarr(VOXELS + 1, target, **OPTIONS)
    check_pyramid(target, VOXELS, 2)


def test_a_source_that_another_program_put_there_is_found(bucket, folder, tmp_path):
    inside = folder.removeprefix(f"{BUCKET}/")
    bucket.put(f"{inside}/other.txt", b"1")
    listed(f"s3://{folder}")
    to_ome_zarr(VOXELS, tmp_path / "a.ome.zarr", **OPTIONS)
    bucket.copy(tmp_path / "a.ome.zarr", f"{inside}/a.ome.zarr")
    to_ome_zarr(f"s3://{folder}/a.ome.zarr", tmp_path / "b.ome.zarr", **OPTIONS)
    check_pyramid(tmp_path / "b.ome.zarr", VOXELS, 2)


def test_a_source_that_another_program_changed_is_another_source(bucket, folder, tmp_path):
    source, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    to_ome_zarr(VOXELS, source, **OPTIONS)
    listed(source)
    to_ome_zarr(source, tmp_path / "b.ome.zarr", **OPTIONS)
    first, second = [f"{inside}/a.ome.zarr/0/c/{z}/0/0" for z in (0, 1)]
    bucket.put(first, bucket.get(second))
    with pytest.raises(TargetExistsError):
        to_ome_zarr(source, tmp_path / "b.ome.zarr", **OPTIONS)


def test_labels_go_to_an_image_at_a_url(url):
    image, version = f"{url}/a.ome.zarr", "0.5" if url.startswith("s3") else "0.4"
    to_ome_zarr(VOXELS, image, ngff_version=version, **OPTIONS)
    labels = (VOXELS > 30000).astype("uint32")
    place = write_labels(image, labels, name="nuclei", **QUIET)
    assert place == f"{image}/labels/nuclei"
    check_pyramid(place, labels, 2, pool_labels)
    assert ome(f"{image}/labels")["labels"] == ["nuclei"]
    write_labels(image, labels, name="nuclei", **QUIET)
    with pytest.raises(TargetExistsError):
        write_labels(image, labels + 1, name="nuclei", **QUIET)
    write_labels(image, labels + 1, name="nuclei", overwrite=True, **QUIET)
    check_pyramid(place, labels + 1, 2, pool_labels)
    write_labels(image, place, name="copy", **QUIET)
    assert ome(f"{image}/labels")["labels"] == ["nuclei", "copy"]
    check_pyramid(image, VOXELS, 2)


@pytest.mark.parametrize("lazy", [False, True])
def test_refused_labels_leave_nothing_in_a_bucket(bucket, folder, lazy):
    image, inside = f"s3://{folder}/a.ome.zarr", folder.removeprefix(f"{BUCKET}/")
    to_ome_zarr(VOXELS, image, **OPTIONS)
    before = bucket.contents(inside)
    labels = np.ones(VOXELS.shape, "int32")
    labels[1, 40, 20] = -2
    with small(), pytest.raises(InputError, match="-2"):
        write_labels(image, da.from_array(labels, (1, 32, 32)) if lazy else labels, **QUIET)
    assert bucket.contents(inside) == before


def test_a_pyramid_is_added_at_a_url(url):
    store, version = f"{url}/a.zarr", "0.4" if url.startswith("s3") else "0.5"
    group = zarr.open_group(store, mode="w", zarr_format=2 if version == "0.4" else 3)
    group.create_array("0", data=VOXELS, chunks=(1, 32, 32))
    assert add_pyramid(store, n_levels=3, pixel_size=SIZE, **QUIET) == store
    check_pyramid(store, VOXELS, 2)
    with pytest.raises(TargetExistsError, match="3 levels already"):
        add_pyramid(store, **QUIET)
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    assert [name.rpartition("/")[2] for name in filesystem.ls(path, detail=False)] == ["a.zarr"]


def test_an_interrupted_pyramid_goes_on(bucket, folder):
    store, inside = f"s3://{folder}/a.zarr", folder.removeprefix(f"{BUCKET}/")
    zarr.open_group(store, mode="w").create_array("0", data=VOXELS, chunks=(1, 32, 32))
    calls: list = []

    def pool(voxels, factor):
        calls.append(voxels.shape)
        if len(calls) == 2:
            raise OSError("the network is gone")
        return pool_image(voxels, factor)

    keywords = {"n_levels": 3, "max_workers": 1, **QUIET}
    with small(2000), mock.patch.object(add, "pool_image", pool):
        with pytest.raises(TargetNotWritableError, match="the network is gone"):
            add_pyramid(store, **keywords)
        assert not bucket.shows_an_image(inside)
        listed(f"s3://{folder}")
        add_pyramid(store, **keywords)
    check_pyramid(store, VOXELS, 2)
    n_calls = len(calls)
    calls.clear()
    fresh = f"s3://{folder}/fresh.zarr"
    zarr.open_group(fresh, mode="w").create_array("0", data=VOXELS, chunks=(1, 32, 32))
    calls.extend([None] * 2)  # it fails no more
    with small(2000), mock.patch.object(add, "pool_image", pool):
        add_pyramid(fresh, **keywords)
    assert n_calls == len(calls) - 2 + 1
    assert not [key for key in bucket.keys(inside) if ".stage" in key]


def test_an_array_that_has_a_levels_name_is_never_replaced(bucket, folder):
    store, inside = f"s3://{folder}/a.zarr", folder.removeprefix(f"{BUCKET}/")
    group = zarr.open_group(store, mode="w")
    group.create_array("0", data=VOXELS)
    listed(store)
    group.create_array("1", data=VOXELS)
    before = bucket.contents(inside)
    with pytest.raises(TargetExistsError, match="never replaced"):
        add_pyramid(store, n_levels=2, **QUIET)
    assert bucket.contents(inside) == before


def test_a_collection_goes_to_a_url(url, tmp_path):
    source = collection(tmp_path / "source.zarr")
    target = f"{url}/all.ome.zarr"
    to_ome_zarr(source, target, scene="all", n_levels=2, **QUIET)
    assert ome(target)["bioformats2raw.layout"] == 3
    assert ome(f"{target}/OME")["series"] == ["0", "1", "2"]
    for index, (name, (_, voxels)) in enumerate(SCANS.items()):
        check_pyramid(f"{target}/{index}", voxels, 2)
        assert multiscale(f"{target}/{index}")["name"] == name
    to_ome_zarr(source, target, scene="all", n_levels=2, **QUIET)
    to_ome_zarr(target, tmp_path / "back.ome.zarr", scene="all", n_levels=2, **QUIET)
    check_collection(tmp_path / "back.ome.zarr")


def test_an_interrupted_collection_goes_on_in_a_bucket(bucket, folder, tmp_path):
    source, target = collection(tmp_path / "source.zarr"), f"s3://{folder}/all.ome.zarr"
    calls: list = []
    read = ZarrReader._read

    def reading(self, box, level):
        calls.append(self.index)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        return read(self, box, level)

    with mock.patch.object(ZarrReader, "_read", reading):
        with pytest.raises(ImageReadError):
            to_ome_zarr(source, target, scene="all", n_levels=2, **QUIET)
        to_ome_zarr(source, target, scene="all", n_levels=2, **QUIET)
    assert calls == [0, 1, 1, 2]
    assert ome(target)["bioformats2raw.layout"] == 3


def test_a_collection_replaces_an_image_in_a_bucket(bucket, folder, tmp_path):
    source, target = collection(tmp_path / "source.zarr"), f"s3://{folder}/all.ome.zarr"
    to_ome_zarr(VOXELS, target, **{**OPTIONS, "n_levels": 4})
    to_ome_zarr(source, target, scene="all", n_levels=2, overwrite=True, **QUIET)
    inside = folder.removeprefix(f"{BUCKET}/")
    parts = {key.split("/")[2] for key in bucket.keys(inside) if "all.ome.zarr" in key}
    assert parts == {"0", "1", "2", "OME", "zarr.json"}


def test_the_source_is_never_the_target(url):
    """An object store has no place beside the target: the source would be deleted first."""
    store = f"{url}/a.ome.zarr"
    to_ome_zarr(VOXELS, store, **OPTIONS)
    array = zarr.open_group(store, mode="r")["0"]
    for source in (store, array, da.from_zarr(array) + 1):
        for target in (store, f"{store}/0"):
            with pytest.raises(InputError, match="target"):
                to_ome_zarr(source, target, overwrite=True, **QUIET)
    check_pyramid(store, VOXELS, 2)


def test_a_name_that_begins_like_the_source_is_another():
    url = f"memory://{uuid.uuid4().hex}/a"
    to_ome_zarr(VOXELS, url, **OPTIONS)
    to_ome_zarr(url, f"{url}2", n_levels=2, **QUIET)
    check_pyramid(f"{url}2", VOXELS, 2)


def test_what_is_not_there_is_not_found(url, folder):
    with pytest.raises(SourceNotFoundError, match=r"none\.zarr"):
        to_ome_zarr(f"{url}/none.zarr", f"{url}/b.ome.zarr", **QUIET)
    with pytest.raises(SourceNotFoundError, match="copy it here"):
        to_ome_zarr(f"{url}/scan.tif", f"{url}/b.ome.zarr", **QUIET)
    with pytest.raises(SourceNotFoundError):
        add_pyramid(f"{url}/none.zarr", **QUIET)
    with pytest.raises(SourceNotFoundError):
        write_labels(f"{url}/none.zarr", VOXELS, **QUIET)


def test_a_missing_bucket_is_an_error_of_ours(endpoint, bucket):
    with pytest.raises(SourceNotFoundError):
        to_ome_zarr("s3://no-such-bucket/a.zarr", "memory://none.ome.zarr", **QUIET)


def test_a_bucket_is_never_made(bucket):
    """A name that is mistyped would be one more bucket to pay for."""
    before = [one["Name"] for one in bucket.client.list_buckets()["Buckets"]]
    for target in ("s3://no-such-bucket/a.ome.zarr", "s3:///a.ome.zarr"):
        with pytest.raises(TargetNotWritableError, match="bucket"):
            to_ome_zarr(VOXELS, target, **OPTIONS)
    assert [one["Name"] for one in bucket.client.list_buckets()["Buckets"]] == before


def test_a_server_that_refuses_is_an_error_of_ours(bucket, folder):
    refuse = PermissionError("Access Denied")
    with (
        mock.patch.object(zarr.storage.FsspecStore, "set", side_effect=refuse),
        pytest.raises(TargetNotWritableError, match="Access Denied"),
    ):
        to_ome_zarr(VOXELS, f"s3://{folder}/a.ome.zarr", **OPTIONS)


def test_an_unknown_protocol_is_refused():
    with pytest.raises(InputError, match="nosuch"):
        to_ome_zarr(VOXELS, "nosuch://a/b.ome.zarr", **QUIET)


SCRIPT = """
import sys
import numpy as np
from patchworks.plugins.ome_zarr import to_ome_zarr
to_ome_zarr(np.ones((4, 5), "uint8"), sys.argv[1], pixel_size={"y": 1, "x": 1}, progress=False)
"""


def test_users_say_where_the_server_is_by_the_environment(endpoint, bucket, folder):
    """By fsspec's own variables too, set before Python starts; those of AWS are the fixture's."""
    said = {
        "FSSPEC_S3_KEY": "testing",
        "FSSPEC_S3_SECRET": "testing",
        "FSSPEC_S3_ENDPOINT_URL": endpoint,
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "FSSPEC_"))}
    target = f"s3://{folder}/a.ome.zarr"
    subprocess.run(
        [sys.executable, "-c", SCRIPT, target], env={**kept, **said}, check=True, timeout=60
    )
    assert np.array_equal(levels(target)[0], np.ones((4, 5)))


def held(url: str) -> dict[str, bytes]:
    """What another program sees at a URL: every object and its bytes."""
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return {name: filesystem.cat_file(name) for name in filesystem.find(path)}


LIKE_PATTERNS = [("scan[1]", "scan1"), ("scan*", "scanA"), ("scan?", "scanB")]
HOLLOW = np.where(np.arange(50)[:, None] < 32, np.uint16(0), VOXELS)  # has empty chunks


@pytest.mark.parametrize(("name", "other"), LIKE_PATTERNS)
def test_of_a_name_like_a_pattern_nothing_else_is_deleted(url, name, other):
    """fsspec expands patterns in what it deletes; zarr deletes each chunk that is empty."""
    target = f"{url}/{name}.zarr"
    to_ome_zarr(VOXELS, f"{url}/{other}.zarr", **OPTIONS)
    write_labels(f"{url}/{other}.zarr", VOXELS, name="n", **QUIET)
    before = held(f"{url}/{other}.zarr")
    to_ome_zarr(VOXELS + 1, target, **{**OPTIONS, "n_levels": 4})
    to_ome_zarr(HOLLOW, target, overwrite=True, **OPTIONS)
    for labels in (VOXELS, HOLLOW):
        write_labels(target, labels, name="n", overwrite=True, **QUIET)
    to_ome_zarr(target, f"{url}/back.zarr", **OPTIONS)
    assert held(f"{url}/{other}.zarr") == before
    check_pyramid(f"{url}/back.zarr", HOLLOW, 2)
    check_pyramid(target, HOLLOW, 2)
    check_pyramid(f"{target}/labels/n", HOLLOW.astype("uint32"), 2, pool_labels)
    assert not [key for key in held(target) if "/3/" in key.partition(".zarr")[2]]
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    left = {entry.rpartition("/")[2] for entry in filesystem.ls(path, detail=False)}
    assert left == {f"{other}.zarr", f"{name}.zarr", "back.zarr"}


def test_a_collection_with_a_name_like_a_pattern_deletes_nothing_else(url, tmp_path):
    source, target = collection(tmp_path / "source.zarr"), f"{url}/scan[1].zarr"
    to_ome_zarr(VOXELS, f"{url}/scan1.zarr", **OPTIONS)
    to_ome_zarr(VOXELS, target, **{**OPTIONS, "n_levels": 4})
    before = held(f"{url}/scan1.zarr")
    to_ome_zarr(source, target, scene="all", n_levels=2, overwrite=True, **QUIET)
    assert held(f"{url}/scan1.zarr") == before
    assert ome(f"{target}/OME")["series"] == ["0", "1", "2"]
    for index, (_, voxels) in enumerate(SCANS.values()):
        check_pyramid(f"{target}/{index}", voxels, 2)


def test_an_interrupted_conversion_to_a_name_like_a_pattern_goes_on(url):
    target, seen = f"{url}/scan[1].zarr", []
    to_ome_zarr(VOXELS, f"{url}/scan1.zarr", **OPTIONS)
    before = held(f"{url}/scan1.zarr")
    with small(), failing_once(3, seen):
        with pytest.raises(ImageReadError, match="the disk is gone"):
            to_ome_zarr(HOLLOW, target, **OPTIONS)
        to_ome_zarr(HOLLOW, target, **OPTIONS)
    assert len(seen) == len(set(seen)) + 1
    check_pyramid(target, HOLLOW, 2)
    assert held(f"{url}/scan1.zarr") == before


def test_an_image_is_renewed_in_the_place_of_one_that_is_like_its_pattern(url):
    """Removal takes what has the name: also where the one that is like it is not there."""
    to_ome_zarr(VOXELS, f"{url}/scan[1].zarr", **OPTIONS)
    Location(f"{url}/scan[1].zarr").remove()
    assert not Location(f"{url}/scan[1].zarr").exists()
