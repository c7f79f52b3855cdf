"""`patchworks models`: weights from a real server on loopback, whole or not at all."""

import io
import pickle
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from flows.cli import main
from patchworks.errors import DownloadError, InputError, TargetExistsError, TargetNotWritableError
from patchworks.plugins.cellpose import fetch, known_models
from patchworks.plugins.cellpose.fetch import fetch_model
from patchworks.plugins.cellpose.find_weights import find_weights
from patchworks.plugins.cellpose.known_models import FOLDER_VARIABLE


def weights_of_4(extra=b""):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"W2": 1.0}, protocol=2))
        archive.writestr("archive/data/0", extra)
    return held.getvalue()


class Site(BaseHTTPRequestHandler):
    """Answers by path with what the test has put there: bytes, and how long it says they are."""

    answers: ClassVar[dict] = {}

    def do_GET(self):  # http.server's name
        body, length = self.answers.get(self.path, (None, 0))
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(Site, "answers", {})
    url = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(known_models, "SITES", {3: url + "3/", 4: url + "4/"})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield Site.answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


def test_fetched_weights_are_those_that_a_run_finds(site, folder, capsys):
    body = weights_of_4(b"x" * 3_000_000)
    site["/4/cpsam_v2"] = body, len(body)
    assert main(["models", "fetch", "cpsam_v2"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / "cpsam_v2")
    assert "cpsam_v2: 100%" in said.err
    assert (folder / "cpsam_v2").read_bytes() == body
    assert find_weights(None, "4.2.1.1").path == str(folder / "cpsam_v2")


def test_what_is_there_is_not_replaced_unless_told(site, folder, capsys):
    body = weights_of_4()
    site["/4/cpsam"] = body, len(body)
    folder.mkdir()
    (folder / "cpsam").write_bytes(b"mine")
    with pytest.raises(TargetExistsError, match="--overwrite"):
        fetch_model("cpsam", progress=False)
    assert main(["models", "fetch", "cpsam"]) == 1
    assert "overwrite" in capsys.readouterr().err
    assert (folder / "cpsam").read_bytes() == b"mine"
    assert main(["models", "fetch", "cpsam", "--overwrite"]) == 0
    assert (folder / "cpsam").read_bytes() == body


@pytest.mark.parametrize(
    ("body", "missing", "said"),
    [
        (weights_of_4(b"x" * 10_000), 1, r"sent \d+ of \d+ bytes"),
        (b"<html>Please log in</html>", 0, "something else than its weights"),
        (None, 0, "answered 404"),
    ],
    ids=["cut off", "a page", "not there"],
)
def test_what_does_not_come_whole_leaves_nothing(site, folder, body, missing, said):
    if body is not None:
        site["/4/cpsam"] = body, len(body) + missing
    with pytest.raises(DownloadError, match=said) as caught:
        fetch_model("cpsam", progress=False)
    assert str(folder / "cpsam") in str(caught.value)
    assert list(folder.iterdir()) == []


def test_weights_of_the_other_version_are_refused(site, folder):
    body = weights_of_4()
    site["/3/nucleitorch_0"] = body, len(body)
    with pytest.raises(DownloadError, match="something else"):
        fetch_model("nuclei", progress=False)


def test_without_a_network_the_error_says_what_to_get_and_where_to_put_it(
    folder, monkeypatch, capsys
):
    monkeypatch.setattr(known_models, "SITES", {3: "http://127.0.0.1:9/", 4: "http://127.0.0.1:9/"})
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["models", "fetch", "nuclei"]) == 1
    said = capsys.readouterr().err
    assert "http://127.0.0.1:9/nucleitorch_0 cannot be reached" in said
    assert str(folder / "nucleitorch_0") in said


def test_a_site_that_says_nothing_does_not_hold_up_for_ever(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(known_models, "SITES", {3: url, 4: url})
        monkeypatch.setattr(fetch, "TIMEOUT_S", 0.2)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        with pytest.raises(DownloadError, match="timed out"):
            fetch_model("cpsam", progress=False)


def test_an_unknown_model_is_refused():
    with pytest.raises(InputError, match="'cito3' is not known"):
        fetch_model("cito3")


def test_a_folder_that_cannot_be_made_is_said(site, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file" / "models"))
    with pytest.raises(TargetNotWritableError, match="cannot be written"):
        fetch_model("cpsam", progress=False)


def test_the_list_says_what_is_here(folder, capsys):
    folder.mkdir()
    (folder / "cyto3").write_bytes(b"")
    (folder / "ours").write_bytes(b"")
    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert FOLDER_VARIABLE in lines[0]
    assert [line.split() for line in lines if line.startswith(("cyto3", "nuclei", "ours"))] == [
        ["cyto3", "Cellpose", "3", "cyto3"],
        ["nuclei", "Cellpose", "3", "-"],
        ["ours", "your", "own", "ours"],
    ]
