"""OME-XML: units, colours, channels, planes."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks.readers.ome_xml import (
    LENGTHS,
    color,
    images_in,
    length,
    metadata_file,
    seconds,
    unit_symbol,
)
from patchworks.readers.scene import Channel

NGFF_LENGTHS = set(
    re.findall(
        r"\w+",
        """
        angstrom attometer centimeter decimeter exameter femtometer foot gigameter hectometer inch
        kilometer megameter meter micrometer mile millimeter nanometer parsec petameter picometer
        terameter yard yoctometer yottameter zeptometer zettameter
        """,
    )
)


def document(pixels="", *, head="", inner="", **sizes):
    extents = {"X": 4, "Y": 3, "Z": 1, "C": 1, "T": 1, **sizes}
    said = " ".join(f'Size{axis}="{n}"' for axis, n in extents.items())
    return (
        f'{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0" Name="cells"><Pixels {said} {pixels}>{inner}</Pixels></Image></OME>'
    )


def only(*args, **options):
    (image,) = images_in(document(*args, **options))
    return image


@pytest.mark.parametrize(
    "symbol, expected",
    [
        ("µm", (2.0, "micrometer")),
        ("\u03bcm", (2.0, "micrometer")),
        ("nm", (2.0, "nanometer")),
        ("mm", (2.0, "millimeter")),
        ("cm", (2.0, "centimeter")),
        ("m", (2.0, "meter")),
        ("pm", (2.0, "picometer")),
        ("Å", (2.0, "angstrom")),
        ("in", (2.0, "inch")),
        ("thou", (0.002, "inch")),
        (None, (2.0, "micrometer")),
        ("pixel", None),
        ("reference frame", None),
        ("parsnip", None),
    ],
)
def test_lengths(symbol, expected):
    assert length("2", symbol) == expected


def test_all_units_are_those_of_ngff():
    assert {name for _, name in LENGTHS.values()} <= NGFF_LENGTHS


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", None, "wide"])
def test_what_is_no_distance(text):
    assert length(text, "µm") is None
    assert seconds(text, "s") is None


@given(st.floats(min_value=1e-12, max_value=1e12))
def test_a_distance_comes_back_exactly(value):
    assert length(repr(value), "nm") == (value, "nanometer")


@pytest.mark.parametrize(
    "text, unit, expected",
    [("300", "ms", 0.3), ("2", "min", 120), ("1.5", None, 1.5), ("1", "h", 3600), ("7", "x", None)],
)
def test_times(text, unit, expected):
    assert seconds(text, unit) == expected


@pytest.mark.parametrize("word", ["micron", "um", "\\u00B5m", "µm", "\u03bcm", "Micrometer"])
def test_words_for_micrometres(word):
    assert length("1", unit_symbol(word)) == (1.0, "micrometer")


@pytest.mark.parametrize("rgb", ["FF0000", "00FF00", "0000FF", "FFFFFF", "0A0B0C"])
@pytest.mark.parametrize("alpha", [0, 255])
def test_colours_are_signed(rgb, alpha):
    number = int(rgb, 16) << 8 | alpha
    signed = number - 2**32 if number >= 2**31 else number
    assert color(str(signed)) == color(str(number)) == rgb


def test_calibration_per_axis():
    image = only(
        'PhysicalSizeX="0.1" PhysicalSizeY="100" PhysicalSizeYUnit="nm" PhysicalSizeZ="0" '
        'TimeIncrement="1"'
    )
    assert image.spacing == {
        "t": (1.0, "second"),
        "y": (100.0, "nanometer"),
        "x": (0.1, "micrometer"),
    }


def test_a_declared_encoding_does_not_matter():
    head = '<?xml version="1.0" encoding="UTF-16"?>\n'
    assert only('PhysicalSizeX="1" PhysicalSizeXUnit="µm"', head=head).spacing["x"][0] == 1


def test_samples_of_a_channel():
    inner = '<Channel Name="RGB" SamplesPerPixel="3" Color="-1"/><TiffData/>'
    image = only(inner=inner, C=3, T=2)
    assert image.channels == (Channel("RGB"),) * 3
    assert image.n_planes == 2


def test_channels_of_which_nothing_is_said():
    assert only(inner="<Channel/><Channel/>", C=2).channels == ()
    assert only(inner='<Channel Name="a"/>', C=2).channels == ()


@pytest.mark.parametrize(
    "inner, n",
    [
        ("<TiffData/>", 12),
        ('<TiffData IFD="0" PlaneCount="7"/>', 7),
        ('<TiffData IFD="0"/><TiffData IFD="1"/>', 2),
        ('<TiffData><UUID FileName="a.tif">u</UUID></TiffData>', 1),
        ('<TiffData IFD="0" PlaneCount="70"/>', 12),
    ],
)
def test_planes_in_files(inner, n):
    assert only(inner=inner, Z=3, C=2, T=2).n_planes == n


def test_names_of_files():
    inner = "".join(
        f'<TiffData><UUID FileName="{name}">u</UUID></TiffData>' for name in ("a", "b", "a")
    )
    assert only(inner=inner, Z=3).file_names == ("a", "b")


def test_a_reference_to_the_metadata():
    assert metadata_file('<OME><BinaryOnly MetadataFile="a.ome.tif" UUID="u"/></OME>') == (
        "a.ome.tif"
    )
    assert metadata_file(document()) is None


def test_what_is_not_xml():
    with pytest.raises(ElementTree.ParseError):
        images_in("<OME")
