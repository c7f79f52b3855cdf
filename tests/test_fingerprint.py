from __future__ import annotations

import functools
import importlib.util
import inspect
import json
import logging
import operator
import os
import pickle
import re
import subprocess
import sys
import sysconfig
import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks.fingerprint import digest, function_digest, remember_after_run

MODULE = "user_code"

SOURCE = '''
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEVEL = 101
NAME = "name 102"
PAIR = (103, 0)
TABLE = np.array([104.0, 0.0])
STEPS = [105]
OPTIONS = {"sigma": 106}
MODES = {"mode 107", "other", "third", "fourth"}
SCALAR = np.float32(108)
COMPLEX = 109j
FOLDER = Path("folder 110")
MAYBE = None


def helper(tile):
    return tile + 111


def helper_of_helper(tile):
    return helper(tile) + 112


@functools.lru_cache
def cached_helper(n):
    return n + 113


bound_helper = functools.partial(helper, 114)


class Model:
    weight = 115

    def __init__(self, level=116):
        self.level = level

    def __call__(self, tile):
        return self.predict(tile) > self.level + LEVEL

    @functools.cached_property
    def gain(self):
        return 151

    def predict(self, tile):
        return tile * self.gain + 117

    def segment(self, tile):
        return tile > 118


class Special(Model):
    def segment(self, tile):
        return tile > 119


MODEL = Model(120)


@dataclass
class Settings:
    level: int = 121

    def __call__(self, tile):
        return tile > self.level


def scaled(by):
    def decorate(fn):
        @functools.wraps(fn)
        def wrapper(tile):
            return fn(tile * by) + 122

        return wrapper

    return decorate


def plain(tile):
    return tile > 123


def with_default(tile, level=124):
    return tile > level


def with_keyword_default(tile, *, level=125):
    return tile > level


@scaled(126)
def decorated(tile):
    return tile > 127


def with_inner(tile):
    def inner(part):
        return part > LEVEL + 128

    return inner(tile)


def chooses(tile, mode="mode"):
    return tile if mode in {"mode", "another", "third", "fourth"} else tile + 129


def closure_over(value):
    def closure(tile):
        return tile > value

    return closure


def uses_level(tile):
    return tile > LEVEL


def uses_name(tile):
    return tile, NAME


def uses_pair(tile):
    return tile > PAIR[0]


def uses_table(tile):
    return tile > TABLE[0]


def uses_steps(tile):
    return tile > STEPS[0]


def uses_options(tile):
    return tile > OPTIONS["sigma"]


def uses_modes(tile):
    return tile, MODES


def uses_scalar(tile):
    return tile > SCALAR


def uses_complex(tile):
    return tile > COMPLEX


def uses_folder(tile):
    return tile, FOLDER


def uses_helper(tile):
    return helper(tile)


def uses_helper_of_helper(tile):
    return helper_of_helper(tile)


def uses_cached_helper(tile):
    return cached_helper(1)


def uses_bound_helper(tile):
    return bound_helper()


def uses_model(tile):
    return MODEL(tile)


def uses_class(tile):
    return Model()(tile)


def uses_maybe(tile):
    return tile, MAYBE


without_source = {}
exec(
    """
def typed_in(tile, mode="mode"):
    if mode in {"mode", "another", "third", "fourth"}:
        return tile > 130
    return tile > LEVEL


class TypedIn:
    def __call__(self, tile):
        return tile > 131
""",
    globals(),
    without_source,
)

lambda_one = lambda tile: tile > 132  # noqa: E731
lambda_here, lambda_beside = lambda tile: tile > 133, lambda tile: tile > 134
lambdas = [
    lambda tile: tile > 135,
    lambda tile: tile > 136,
]

FUNCTIONS = {
    "plain": plain,
    "with_default": with_default,
    "with_keyword_default": with_keyword_default,
    "decorated": decorated,
    "with_inner": with_inner,
    "chooses": chooses,
    "closure": closure_over(137),
    "closure over an array": closure_over(np.array([138.0, 0.0])),
    "closure over a set": closure_over({"value 139", "other", "third", "fourth"}),
    "closure over a set of sets": closure_over({frozenset(("a 140", "b", "c", "d"))}),
    "closure over a dict": closure_over({"value": 141, frozenset(("a", "b", "c")): 0, "x": 1}),
    "closure over functions": closure_over({plain, helper, with_default}),
    "partial": functools.partial(with_default, level=142),
    "partial with a position": functools.partial(closure_over, 143),
    "bound method": Model(144).segment,
    "inherited method": Special(145).predict,
    "overridden method": Special(146).segment,
    "instance": Model(147),
    "instance of a subclass": Special(148),
    "dataclass": Settings(149),
    "method of an array": np.array([150.0, 0.0]).take,
    "class": Model,
    "typed in": without_source["typed_in"],
    "instance of a typed in class": without_source["TypedIn"](),
    "lambda": lambda_one,
    "lambda in a list": lambdas[0],
    **{name: value for name, value in globals().items() if name.startswith("uses_")},
}
'''


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Import a source as the user's module; every call is a new file and a new module."""
    n_loaded = 0

    def load_source(source: str = SOURCE, name: str = MODULE) -> ModuleType:
        nonlocal n_loaded
        n_loaded += 1
        path = tmp_path / str(n_loaded) / f"{name}.py"
        path.parent.mkdir()
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load_source


def digests(module: ModuleType) -> dict[str, str]:
    return {name: digest(fn) for name, fn in module.FUNCTIONS.items()}


def differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [name for name in a if a[name] != b[name]]


# --- the same function --------------------------------------------------------------------------


def test_the_same_function_loaded_again_has_the_same_digest(load):
    assert differing(digests(load()), digests(load())) == []


def test_a_digest_does_not_change_with_what_was_digested_before(load):
    module = load()
    first = digests(module)
    again = {name: digest(module.FUNCTIONS[name]) for name in reversed(module.FUNCTIONS)}
    assert differing(first, again) == []


@pytest.fixture(scope="module")
def digests_of_other_processes(tmp_path_factory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("other_process")
    (folder / f"{MODULE}.py").write_text(SOURCE)
    program = (
        "import json, user_code\n"
        "from patchworks.fingerprint import digest\n"
        "print(json.dumps({name: digest(fn) for name, fn in user_code.FUNCTIONS.items()}))"
    )
    path = os.pathsep.join([str(folder), *sys.path])
    found = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        found.append(json.loads(done.stdout))
    return found


@dataclass(frozen=True)
class Percentiles:
    low: tuple[float, ...] = (1.0, 2.0)
    high: tuple[float, ...] = (1.0, 2.0)
    pairs: tuple[tuple[float, float], ...] = ((1.0, 2.0),)


def test_a_source_that_another_thread_keeps_from_being_parsed_is_looked_for_again(monkeypatch):
    expected, left = digest(Percentiles), [3]
    getsource = inspect.getsource

    def sometimes(value):
        left[0] -= 1
        if left[0] >= 0:
            raise SystemError("AST constructor recursion depth mismatch (before=210, after=74)")
        return getsource(value)

    monkeypatch.setattr("inspect.getsource", sometimes)
    assert digest(Percentiles) == expected
    assert left[0] < 0


def test_whether_equal_constants_are_one_object_makes_no_difference():
    shared = (1.0, 2.0)
    first, second, third = (tuple(float(n) for n in (1, 2)) for _ in range(3))
    apart = Percentiles(first, second, (third,))
    digests = {
        digest(Percentiles()),
        digest(pickle.loads(pickle.dumps(Percentiles()))),
        digest(Percentiles(shared, shared, (shared,))),
        digest(apart),
    }
    assert len(digests) == 1
    assert digest(Percentiles((1.0, 2.5))) not in digests


def test_a_digest_is_the_same_in_every_process_whatever_its_hash_seed(digests_of_other_processes):
    assert differing(*digests_of_other_processes) == []


def test_a_digest_is_the_same_in_this_process_and_in_another(load, digests_of_other_processes):
    assert differing(digests(load()), digests_of_other_processes[0]) == []


# --- another function ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("uses_level", 101),
        ("uses_name", 102),
        ("uses_pair", 103),
        ("uses_table", 104),
        ("uses_steps", 105),
        ("uses_options", 106),
        ("uses_modes", 107),
        ("uses_scalar", 108),
        ("uses_complex", 109),
        ("uses_folder", 110),
        ("uses_helper", 111),
        ("uses_helper_of_helper", 111),
        ("uses_helper_of_helper", 112),
        ("uses_cached_helper", 113),
        ("uses_bound_helper", 111),
        ("uses_bound_helper", 114),
        ("instance", 115),
        ("instance of a subclass", 115),
        ("class", 115),
        ("instance", 101),
        ("instance", 117),
        ("instance", 151),
        ("instance of a subclass", 117),
        ("instance of a subclass", 119),
        ("inherited method", 117),
        ("bound method", 118),
        ("overridden method", 119),
        ("uses_model", 117),
        ("uses_model", 120),
        ("uses_class", 117),
        ("dataclass", 121),
        ("decorated", 122),
        ("decorated", 126),
        ("decorated", 127),
        ("plain", 123),
        ("with_default", 124),
        ("with_keyword_default", 125),
        ("with_inner", 101),
        ("with_inner", 128),
        ("chooses", 129),
        ("typed in", 101),
        ("typed in", 130),
        ("instance of a typed in class", 131),
        ("lambda", 132),
        ("lambda in a list", 135),
        ("closure", 137),
        ("closure over an array", 138),
        ("closure over a set", 139),
        ("closure over a set of sets", 140),
        ("closure over a dict", 141),
        ("closure over functions", 111),
        ("partial", 124),
        ("partial", 142),
        ("partial with a position", 143),
        ("bound method", 144),
        ("inherited method", 145),
        ("overridden method", 146),
        ("instance", 147),
        ("instance of a subclass", 148),
        ("dataclass", 149),
        ("method of an array", 150),
    ],
)
def test_a_changed_number_that_a_function_depends_on_changes_its_digest(load, name, number):
    assert SOURCE.count(str(number)) == 1
    before = digest(load().FUNCTIONS[name])
    after = digest(load(SOURCE.replace(str(number), "9" + str(number))).FUNCTIONS[name])
    assert before != after


def test_a_number_that_a_function_does_not_depend_on_leaves_its_digest(load):
    changed = load(SOURCE.replace("123", "9123"))
    assert differing(digests(load()), digests(changed)) == ["plain", "closure over functions"]


def test_defaults_count_where_the_source_is_the_same():
    def make(level):
        return lambda tile, level=level: tile > level

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_keyword_defaults_count_where_the_source_is_the_same():
    def make(level):
        return lambda tile, *, level=level: tile > level

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_a_global_that_was_none_counts_once_it_is_something(load):
    module = load()
    before = digest(module.uses_maybe)
    module.MAYBE = [1]
    assert digest(module.uses_maybe) != before


def test_all_functions_have_digests_of_their_own(load):
    found = digests(load())
    assert len(set(found.values())) == len(found)


def test_lambdas_on_one_line_are_not_taken_for_one_another(load):
    module = load()
    assert digest(module.lambda_here) != digest(module.lambda_beside)


def test_lambdas_in_a_list_are_not_taken_for_one_another(load):
    module = load()
    assert digest(module.lambdas[0]) != digest(module.lambdas[1])


def test_a_module_of_the_user_may_be_named_as_one_of_python(load):
    before = digest(load("def fn(tile):\n    return tile > 1", "profile").fn)
    assert digest(load("def fn(tile):\n    return tile > 2", "profile").fn) != before


def test_the_source_of_a_function_counts_though_its_package_is_installed(
    load, monkeypatch, tmp_path
):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    before = digest(load("def fn(tile):\n    return tile > 1", "installed_code").fn)
    assert digest(load("def fn(tile):\n    return tile > 2", "installed_code").fn) != before


HELPERS = "".join(
    f"G{i} = ({i},)\n\ndef helper_{i}(tile):\n    return tile + G{i}[0]\n\n" for i in range(12)
)
MANY = HELPERS + "def fn(tile):\n    return " + " + ".join(f"helper_{i}(tile)" for i in range(12))


@pytest.mark.parametrize("n", range(12))
def test_the_globals_of_every_helper_count_not_only_those_of_the_first(load, n):
    before = digest(load(MANY).fn)
    assert digest(load(MANY.replace(f"G{n} = ({n},)", f"G{n} = (99,)")).fn) != before


@pytest.mark.parametrize("n", range(12))
def test_the_closure_of_every_inner_function_counts_not_only_that_of_the_first(n):
    def chain(values):
        def link(value, after):
            return lambda tile: after(tile) + value

        fn = np.sin
        for value in values:
            fn = link((value,), fn)
        return fn

    values = list(range(12))
    before = digest(chain(values))
    values[n] = 99
    assert digest(chain(values)) != before


# --- values -------------------------------------------------------------------------------------


def closing_over(value):
    def segmenter(tile):
        return tile > value

    return segmenter


class Color(Enum):
    RED = 1


DISTINCT = [
    None,
    True,
    1,
    1.0,
    1j,
    "1",
    b"1",
    "None",
    -0.0,
    0.0,
    float("nan"),
    PurePosixPath("1"),
    np.int64(1),
    np.float32(1),
    np.dtype("float32"),
    [1],
    (1,),
    {1},
    {1: 1},
    [[1], [2]],
    [[1, 2], []],
    [1, 2],
    [2, 1],
    ["a", "b"],
    ["ab"],
    ["a\0b"],
    ["a\1b"],
    range(3),
    slice(0, 3),
    np.array([1, 2]),
    np.array([1, 2], "int32"),
    np.array([[1, 2]]),
    np.array([2, 1]),
    np.array([1.0, 2.0]),
    np.array(["a", "b"]),
    np.array([], "float32"),
    np.array(7),
    np.array([1, None], object),
    np.array([2, None], object),
    np.sin,
    np.cos,
    len,
    max,
    json,
    logging,
    int,
    float,
]


def test_every_two_different_values_in_a_closure_make_two_digests():
    found = {}
    for value in DISTINCT:
        found.setdefault(digest(closing_over(value)), []).append(value)
    assert [values for values in found.values() if len(values) > 1] == []


@pytest.mark.parametrize(
    "dtype",
    ["bool", "float16", "complex64", "<U3", "S3", ">u2", "datetime64[D]", "i4,f4", "object"],
)
def test_values_of_an_array_count_whatever_its_dtype(dtype):
    arrays = [np.array([0, 1, n]).astype(dtype) for n in (0, 0, 1)]
    assert digest(arrays[0]) == digest(arrays[1])
    assert digest(arrays[0]) != digest(arrays[2])


@pytest.mark.parametrize(
    "value",
    [
        *DISTINCT,
        np.add.reduce,
        scipy.special.expit,
        re.compile("a+"),
        "-".join,
        operator.itemgetter(1),
        datetime(2020, 1, 1),
        OrderedDict(a=1),
        Color.RED,
        np.random.default_rng(0),
        np.ma.array([1, 2], mask=[0, 1]),
    ],
)
def test_a_value_in_a_closure_makes_the_same_digest_every_time(value):
    assert digest(closing_over(value)) == digest(closing_over(value))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(VALUES, VALUES)
def test_two_values_have_one_digest_only_if_they_are_equal(a, b):
    if digest(a) == digest(b):
        assert a == b


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=6), st.randoms())
def test_a_dict_has_the_same_digest_in_any_order(values, random):
    items = list(values.items())
    random.shuffle(items)
    assert digest(dict(items)) == digest(values)


@pytest.mark.parametrize("change", [np.asfortranarray, np.copy, lambda a: a[:, ::-1][:, ::-1]])
def test_arrays_of_the_same_values_have_the_same_digest_however_they_lie_in_memory(change):
    array = np.arange(12.0).reshape(3, 4)
    assert digest(change(array)) == digest(array)


def test_one_changed_voxel_of_an_array_in_a_closure_changes_the_digest():
    weights = np.zeros((50, 60), "float32")
    before = digest(closing_over(weights))
    weights[49, 59] = 1e-30
    assert digest(closing_over(weights)) != before


def test_the_mask_of_a_masked_array_counts():
    values = [np.ma.array([1, 2, 3], mask=mask) for mask in ([0, 0, 1], [0, 1, 0])]
    assert digest(values[0]) != digest(values[1])


# --- objects ------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("level",)

    def __init__(self, level):
        self.level = level

    def __call__(self, tile):
        return tile > self.level


class SlottedAndMore(Slotted):
    def __init__(self, level, name="name"):
        super().__init__(level)
        self.name = name


HELD = threading.local()  # memory that is not Python's
HELD.values = {}


class Weights:
    """Like a tensor: it has a `__dict__`, but what it holds only shows when it is pickled."""

    def __init__(self, values):
        HELD.values[id(self)] = values

    def __reduce_ex__(self, protocol):
        return Weights, (HELD.values[id(self)],)


class MoreWeights(Weights):
    pass


class Reduced:
    def __init__(self, value):
        self.hidden = lambda: value

    def __reduce__(self):
        return Reduced, (self.hidden(),)


class ReducedByItsBase(Reduced):
    pass


class ListWithName(list):
    def __init__(self, values, name):
        super().__init__(values)
        self.name = name


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(Slotted, id="slots"),
        pytest.param(SlottedAndMore, id="slots and a dict: the slot"),
        pytest.param(lambda name: SlottedAndMore(1, name), id="slots and a dict: the dict"),
        pytest.param(lambda n: Weights([n]), id="weights"),
        pytest.param(lambda n: MoreWeights([n]), id="weights of a subclass"),
        pytest.param(Reduced, id="__reduce__"),
        pytest.param(ReducedByItsBase, id="inherited __reduce__"),
        pytest.param(lambda n: ListWithName([], n), id="an attribute of a list of one's own"),
        pytest.param(lambda n: np.random.default_rng(n), id="a random generator"),
        pytest.param(lambda n: np.array([0, n]).take, id="a method of an array"),
        pytest.param(lambda n: {0: n}.get, id="a method of a dict"),
        pytest.param(lambda n: functools.partial(max, n), id="an argument of a builtin"),
        pytest.param(lambda n: np.vectorize(closing_over(n)), id="a vectorized function"),
        pytest.param(lambda n: functools.lru_cache(closing_over(n)), id="a cached function"),
    ],
)
def test_what_an_object_holds_counts_wherever_it_keeps_it(make):
    first, second = make(1), make(2)
    assert digest(first) == digest(make(1))
    assert digest(first) != digest(second)


def test_an_attribute_that_a_dataclass_does_not_declare_counts(load):
    module = load()
    one, other = (type("Sub", (module.Settings,), {})() for _ in range(2))
    one.extra, other.extra = 1, 2
    assert digest(one) != digest(other)


LAZY = """
from dataclasses import dataclass, field

@dataclass
class Lazy:
    level: int
    model: object = field(init=False)
"""


def test_a_dataclass_field_that_is_not_set_yet_is_no_error(load):
    lazy = load(LAZY).Lazy
    assert digest(lazy(1)) != digest(lazy(2))


class LoadsWhenFirstUsed:
    """A segmenter as the advice for Dask goes: the model is loaded where it runs, not pickled."""

    def __init__(self, path):
        self.path = path
        self.model = None

    def __call__(self, tile):
        self.model = self.model or f"loaded from {self.path}"
        return tile

    def __getstate__(self):
        return {"path": self.path, "model": None}


class Counts:
    """A segmenter with a state of its own that pickling keeps."""

    def __init__(self, level=1):
        self.level = level
        self.n_calls = 0

    def __call__(self, tile):
        self.n_calls += 1
        return tile


def run_once(segmenter) -> str:
    """Do what a run does; return the digest it began with."""
    before = function_digest(segmenter)
    segmenter(np.zeros(3))
    remember_after_run(segmenter, before)
    return before


def test_a_function_that_has_run_is_still_the_function_that_began():
    segmenter = Counts()
    began = run_once(segmenter)
    assert digest(segmenter) != began
    assert [run_once(segmenter) for _ in range(3)] == [began] * 3


def test_a_function_that_was_changed_after_its_run_is_another():
    segmenter = Counts(level=1)
    began = run_once(segmenter)
    segmenter.level = 2
    assert function_digest(segmenter) != began


def test_a_function_that_never_ran_is_what_its_digest_says():
    segmenter = Counts(level=77)
    assert function_digest(segmenter) == digest(segmenter)


def test_what_an_object_leaves_out_of_its_pickle_does_not_count():
    segmenter = LoadsWhenFirstUsed("weights.pt")
    before = digest(segmenter)
    segmenter(np.zeros(3))
    assert digest(segmenter) == before


# --- cycles and what cannot be pinned down -------------------------------------------------------


def test_a_function_that_calls_itself_has_a_digest():
    def make(limit):
        def fn(n):
            return n if n > limit else fn(n + 1)

        return fn

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_functions_that_call_each_other_have_digests():
    def make(limit):
        def one(n):
            return n if n > limit else other(n)

        def other(n):
            return one(n + 1)

        return one

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_containers_and_objects_that_hold_themselves_have_digests():
    def make(value):
        model = Slotted(value)
        holder = {"list": [value], "model": model}
        holder["list"].append(holder)
        model.level = holder
        return closing_over(holder)

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_a_long_chain_of_objects_is_no_error():
    chain = None
    for level in range(2000):
        chain = Slotted((level, chain))
    assert len(digest(closing_over(chain))) == 32


def test_what_cannot_be_pinned_down_gets_a_digest_of_its_own_and_a_warning(caplog):
    lock = threading.Lock()
    with caplog.at_level(logging.WARNING, logger="patchworks"):
        found = {digest(closing_over(lock)) for _ in range(3)}
    assert len(found) == 3
    assert "cannot fingerprint a lock" in caplog.text


def test_a_digest_is_32_hexadecimal_digits():
    found = digest("anything")
    assert len(found) == 32
    assert int(found, 16) >= 0


def test_a_digest_does_not_tell_where_the_source_lies(load, tmp_path):
    first, second = load(), load()
    assert Path(first.__file__) != Path(second.__file__)
    assert digest(first.plain) == digest(second.plain)


class TestWeights:
    """A model in a file is part of what a function is: by its content, not by its name."""

    @pytest.mark.parametrize("kind", [str, Path])
    def test_another_content_is_another_function(self, tmp_path, kind):
        file = tmp_path / "model.pt"
        file.write_bytes(b"one")
        function = functools.partial(max, kind(file))
        before = digest(function)
        os.utime(file, (1e9, 1e9))
        assert digest(function) == before
        file.write_bytes(b"two")
        os.utime(file, (1e9, 1e9))
        assert digest(function) != before
        file.unlink()
        assert digest(function) != before

    def test_a_file_that_the_function_writes_makes_no_other_function(self, tmp_path):
        log = tmp_path / "log.txt"
        log.write_text("begin")
        function = functools.partial(max, str(log))
        before = digest(function)
        log.write_text("begin, tile 1")
        assert digest(function) == before
