"""Which files are one image, and when it has settled."""

import os
import struct
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.inbox.arrivals import Arrival, look
from flows.inbox.companions import CziHeader
from flows.inbox.listing import Listing
from flows.inbox.memory import Memory
from patchworks.io.location import Location
from patchworks.readers.registry import open_reader

IMAGE = np.arange(64, dtype="u2").reshape(8, 8)
DATA = Path(__file__).parents[3] / "shared" / "data"


def arrivals(folder: Path, memory: Memory, now: float, settle_s: float = 10) -> list[Arrival]:
    listing = Listing(Location(str(folder)))
    return look(listing, memory, now=now, settle_s=settle_s, leave_out={"results"})


def settled(folder: Path) -> dict[str, Arrival]:
    """Look twice, long enough apart, and return what is there by its path."""
    memory = Memory()
    arrivals(folder, memory, 0)
    arrivals(folder, memory, 10)
    return {arrival.path: arrival for arrival in arrivals(folder, memory, 20)}


class TestSettling:
    @given(st.lists(st.tuples(st.floats(0.1, 30), st.booleans()), min_size=1, max_size=12))
    @settings(max_examples=40, deadline=None)
    def test_an_image_is_settled_once_two_looks_apart_saw_the_same(self, tmp_path_factory, events):
        """Whatever happens between the looks: quiet_s is the time since the last change seen."""
        folder = tmp_path_factory.mktemp("inbox")
        file = folder / "a.tif"
        file.write_bytes(b"")
        memory, now, last_change, n_bytes = Memory(), 100.0, None, 0
        for pause_s, grows in events:
            now += pause_s
            if grows:
                n_bytes += 1
                file.write_bytes(b"x" * n_bytes)
            if grows or last_change is None:
                last_change = now
            (arrival,) = arrivals(folder, memory, now)
            assert arrival.quiet_s == pytest.approx(now - last_change)

    def test_an_old_modification_time_alone_says_nothing(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"half")
        os.utime(tmp_path / "a.tif", (1, 1))  # as programs that copy set it at once
        assert arrivals(tmp_path, Memory(), 1e9)[0].quiet_s == 0

    def test_a_clock_that_is_set_back_costs_a_wait(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"x")
        memory = Memory()
        arrivals(tmp_path, memory, 1000)
        assert arrivals(tmp_path, memory, 900)[0].quiet_s == 0
        assert arrivals(tmp_path, memory, 950)[0].quiet_s == 50

    def test_what_was_seen_lasts_between_looks_and_damage_costs_a_wait(self, tmp_path):
        folder, kept = tmp_path / "inbox", tmp_path / "seen.json"
        folder.mkdir()
        tifffile.imwrite(folder / "a.ome.tif", IMAGE)
        memory = Memory()
        for now in (0, 10):
            arrivals(folder, memory, now)
            memory.save(kept)
            memory = Memory.load(kept)
        assert arrivals(folder, memory, 30)[0].quiet_s == 30
        kept.write_bytes(kept.read_bytes()[:-5])
        assert arrivals(folder, Memory.load(kept), 30)[0].quiet_s == 0

    def test_an_image_written_anew_is_another_one(self, tmp_path):
        (tmp_path / "a.tif").write_bytes(b"x")
        first = settled(tmp_path)["a.tif"].key
        assert settled(tmp_path)["a.tif"].key == first
        os.utime(tmp_path / "a.tif", (5, 5))
        assert settled(tmp_path)["a.tif"].key != first

    def test_the_oldest_comes_first(self, tmp_path):
        for number, time in enumerate([30, 10, 20]):
            (tmp_path / f"{number}.czi").write_bytes(b"x")
            os.utime(tmp_path / f"{number}.czi", (time, time))
        assert list(settled(tmp_path)) == ["1.czi", "2.czi", "0.czi"]


class TestCompanions:
    def test_what_is_no_image_is_left_alone(self, tmp_path):
        for name in ("notes.txt", ".scan.czi", "scan.yaml", "scan.czi.part", "~$scan.czi"):
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "results").mkdir()
        (tmp_path / "results" / "b.czi").write_bytes(b"x")
        (tmp_path / "loop").symlink_to(tmp_path)
        assert settled(tmp_path) == {}

    def test_files_of_an_ome_tiff_set_are_one_image_and_all_of_them_must_be_there(self, tmp_path):
        names = [f"set_{number}.ome.tif" for number in range(3)]
        _write_set(tmp_path, names)
        (found,) = settled(tmp_path).values()
        assert (found.path, found.waits_for, len(found.files)) == (names[0], "", 3)
        open_reader(tmp_path / found.path).close()
        (tmp_path / names[0]).rename(tmp_path / "later")
        (waiting,) = settled(tmp_path).values()
        assert names[0] in waiting.waits_for
        assert len(waiting.files) == 2

    def test_a_set_has_settled_when_its_last_file_has(self, tmp_path):
        names = [f"set_{number}.ome.tif" for number in range(2)]
        _write_set(tmp_path, names)
        memory = Memory()
        arrivals(tmp_path, memory, 0)
        os.utime(tmp_path / names[1])
        arrivals(tmp_path, memory, 15)
        (found,) = [a for a in arrivals(tmp_path, memory, 20) if a.path == names[0]]
        assert found.quiet_s == 5

    def test_a_companion_file_names_its_tiffs(self, tmp_path):
        tifffile.imwrite(tmp_path / "p.ome.tif", IMAGE, description=_binary_only("a.companion.ome"))
        (tmp_path / "a.companion.ome").write_text(_ome("p.ome.tif", "q.ome.tif"))
        (found,) = settled(tmp_path).values()
        assert found.path == "a.companion.ome"
        assert "q.ome.tif" in found.waits_for

    def test_a_folder_of_numbered_tiffs_is_one_image_when_its_grid_is_full(self, tmp_path):
        folder = tmp_path / "scan"
        folder.mkdir()
        for z in (1, 2, 4):
            tifffile.imwrite(folder / f"scan_z{z:03d}.tif", IMAGE)
        (found,) = settled(tmp_path).values()
        assert "z3" in found.waits_for
        tifffile.imwrite(folder / "scan_z003.tif", IMAGE)
        (found,) = settled(tmp_path).values()
        assert (found.path, found.waits_for, len(found.files)) == ("scan", "", 4)
        assert open_reader(tmp_path / found.path).scene.shape == (4, 8, 8)

    def test_a_folder_of_other_tiffs_holds_images_unless_settings_bear_its_name(self, tmp_path):
        folder = tmp_path / "alice"
        folder.mkdir()
        for name in ("cells.tif", "nuclei.tif"):
            tifffile.imwrite(folder / name, IMAGE)
        assert sorted(settled(tmp_path)) == ["alice/cells.tif", "alice/nuclei.tif"]
        (tmp_path / "alice.yaml").write_text("")
        assert list(settled(tmp_path)) == ["alice"]

    def test_a_zarr_store_is_one_image_and_settles_with_its_last_chunk(self, tmp_path):
        group = zarr.open_group(tmp_path / "a.zarr", mode="w")
        array = group.create_array("0", data=IMAGE, chunks=(4, 4))
        memory = Memory()
        arrivals(tmp_path, memory, 0)
        array[:4, :4] = 7
        (found,) = arrivals(tmp_path, memory, 20)
        assert (found.path, found.quiet_s) == ("a.zarr", 0)
        assert {file.name for file in found.files} == {"zarr.json"}
        (tmp_path / "b.zarr" / "0").mkdir(parents=True)
        assert "no metadata" in settled(tmp_path)["b.zarr"].waits_for

    def test_a_czi_that_the_microscope_still_writes_waits_and_parts_belong_together(self, tmp_path):
        first, second = bytes(range(16)), bytes(range(16, 32))
        (tmp_path / "a.czi").write_bytes(_czi_header(first, first, 0))
        (tmp_path / "a(1).czi").write_bytes(_czi_header(first, second, 1))
        (found,) = settled(tmp_path).values()
        assert (found.path, found.waits_for, len(found.files)) == ("a.czi", "", 2)
        (tmp_path / "a.czi").write_bytes(_czi_header(first, first, 0, is_open=True))
        (found,) = settled(tmp_path).values()
        assert "still open" in found.waits_for
        (tmp_path / "a.czi").unlink()
        (found,) = settled(tmp_path).values()
        assert "first part is not there" in found.waits_for

    def test_a_part_that_came_before_its_first_part_finds_it_later(self, tmp_path):
        first, second = bytes(range(16)), bytes(range(16, 32))
        (tmp_path / "a(1).czi").write_bytes(_czi_header(first, second, 1))
        memory = Memory()
        for now in (0, 20):
            arrivals(tmp_path, memory, now)
        (tmp_path / "a.czi").write_bytes(_czi_header(first, first, 0))
        for now in (40, 60):
            found = arrivals(tmp_path, memory, now)
        assert [(a.path, a.waits_for, len(a.files)) for a in found] == [("a.czi", "", 2)]

    @pytest.mark.parametrize("content", [b"", b"ZISRAW", b"no CZI file" * 100])
    def test_a_part_finds_its_first_part_whatever_lies_beside_them(self, tmp_path, content):
        first, second = bytes(range(16)), bytes(range(16, 32))
        (tmp_path / "a.czi").write_bytes(content)  # looked at before the first part
        (tmp_path / "c.czi").write_bytes(_czi_header(first, second, 1))
        assert "first part is not there" in settled(tmp_path)["c.czi"].waits_for
        (tmp_path / "b.czi").write_bytes(_czi_header(first, first, 0))
        found = settled(tmp_path)
        assert {path: len(each.files) for path, each in found.items()} == {"a.czi": 1, "b.czi": 2}

    @pytest.mark.skipif(not DATA.is_dir(), reason="real files are not here")
    @pytest.mark.parametrize("name", ["s_1_t_1_c_1_z_1.czi", "mosaic_test.czi"])
    def test_real_czi_files_are_whole(self, name):
        with (DATA / name).open("rb") as file:
            header = CziHeader.read(file)
        assert (header.part, header.is_open, header.first == header.own) == (0, False, True)

    def test_broken_files_are_images_of_their_own(self, tmp_path):
        for name in ("a.ome.tif", "a.czi", "a.companion.ome", "a.xlef"):
            (tmp_path / name).write_bytes(b"\xff not what it says")
        assert len(settled(tmp_path)) == 4

    def test_one_damaged_byte_makes_an_image_of_its_own(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.ome.tif", IMAGE)
        content = bytearray((tmp_path / "a.ome.tif").read_bytes())
        for place in range(len(content) - IMAGE.nbytes):
            damaged = content.copy()
            damaged[place] = 1
            (tmp_path / "a.ome.tif").write_bytes(damaged)
            assert list(settled(tmp_path)) == ["a.ome.tif"], place


def test_a_folder_one_may_not_look_into_is_left_alone_but_not_the_inbox_itself(
    tmp_path, monkeypatch, caplog
):
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "a.czi").write_bytes(b"x")
    closed, scandir = [tmp_path / "lost+found"], os.scandir

    def scan(folder: Path) -> object:
        if folder in closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("flows.inbox.listing.os.scandir", scan)
    assert list(settled(tmp_path)) == ["a.czi"]
    assert "lost+found: left alone: Permission denied" in caplog.text
    closed.append(tmp_path)
    with pytest.raises(PermissionError):
        settled(tmp_path)


def test_a_prefix_of_a_bucket_is_an_inbox_too(tmp_path):
    files = fsspec.filesystem("memory")
    files.store.clear()
    names = ["set_0.ome.tif", "set_1.ome.tif"]
    _write_set(tmp_path, names)
    for name in names:
        files.pipe_file(f"/bucket/in/alice/{name}", (tmp_path / name).read_bytes())
    memory, listing = Memory(), Listing(Location("memory://bucket/in"))
    for now in (0, 20, 40):
        (found,) = look(listing, memory, now=now, settle_s=10, leave_out=())[:1]
    assert (found.path, found.waits_for, len(found.files)) == ("alice/set_0.ome.tif", "", 2)
    assert found.modified > 0
    files.store.clear()


def _write_set(folder: Path, names: list[str]) -> None:
    for name in names:
        tifffile.imwrite(folder / name, IMAGE, description=_ome(*names).encode(), metadata=None)


def _ome(*names: str) -> str:
    planes = "".join(
        f'<TiffData FirstZ="{z}" IFD="0" PlaneCount="1">'
        f'<UUID FileName="{name}">urn:uuid:0000000{z}-0000-0000-0000-000000000000</UUID></TiffData>'
        for z, name in enumerate(names)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:'
        '00000000-0000-0000-0000-000000000000"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        f'DimensionOrder="XYZCT" Type="uint16" SizeX="8" SizeY="8" SizeZ="{len(names)}" SizeC="1" '
        f'SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{planes}</Pixels></Image></OME>'
    )


def _binary_only(metadata: str) -> bytes:
    return (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<BinaryOnly MetadataFile="{metadata}" UUID="urn:uuid:0"/></OME>'
    ).encode()


def _czi_header(first: bytes, own: bytes, part: int, *, is_open: bool = False) -> bytes:
    name = b"ZISRAWFILE".ljust(16, b"\0")
    pending = -1 if is_open else 0
    return struct.pack(
        "<16sqqiiii16s16siqqi", name, 512, 512, 1, 0, 0, 0, first, own, part, 0, 0, pending
    )
