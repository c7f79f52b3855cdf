"""What batches of tiles said is kept for the very way in which they were compared."""

import numpy as np
import zarr

from flows import tasks
from flows.batches import Batch
from flows.caching import StageOf
from patchworks.pipeline import save_plan, segment_tiles
from patchworks.plan import RunOptions, plan_run
from patchworks.run_plan import open_stage
from tests.stores import components

DIAGONAL = np.eye(4, dtype="uint8").repeat(3, 0).repeat(3, 1)[None].repeat(2, 0)
BATCHES = [Batch(0, 9), Batch(10, 31)]


def n_objects(folder, **options):
    """Go through the tasks after segmenting, in the stage that an earlier call left."""
    image = zarr.create_array(
        zarr.storage.MemoryStore(), data=DIAGONAL, chunks=(1, 3, 3), dimension_names=["t", "y", "x"]
    )
    asked = RunOptions(write_to=folder / "o.zarr", tile_shape=(3, 3), overlap=0, **options)
    plan = plan_run(image, components, asked)
    stage = open_stage(plan)
    assert plan.spec.grid.n_tiles == 32
    segment_tiles(plan, range(32))
    save_plan(plan)
    place = StageOf.of(stage.root)
    for batch in BATCHES:
        if tasks.joining.load_joined(stage, tasks.joined_name(plan, batch)) is None:
            tasks.judge_seams.fn(place, batch)
    return tasks.stitch.fn(place, BATCHES)


def test_another_connectivity_and_linked_time_are_judged_anew(tmp_path, monkeypatch):
    monkeypatch.setattr("patchworks.plan._identity", lambda source, options: "the same image")
    asked = {"link_time": True}, {}, {"connectivity": 2}, {"connectivity": 2, "link_time": True}
    assert [n_objects(tmp_path, **options) for options in asked] == [4, 8, 2, 1]
    assert len(list((tmp_path / "o.zarr.stage").iterdir())) == 1
