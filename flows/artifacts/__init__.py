"""What people see of a run in the Prefect UI: progress, a table of steps, the result, a way on.

No artifact ever breaks a run or holds it up for long: what the server does not take is logged once
and left out.
"""

from flows.artifacts.failure import publish_failure, say_how_to_go_on
from flows.artifacts.progress import Progress
from flows.artifacts.result import publish_conversion, publish_result
from flows.artifacts.table import StepRow, publish_table, step_rows

__all__ = [
    "Progress",
    "StepRow",
    "publish_conversion",
    "publish_failure",
    "publish_result",
    "publish_table",
    "say_how_to_go_on",
    "step_rows",
]
