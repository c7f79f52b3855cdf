"""All flows as forms, with the inbox, in one process: for a laptop, and for trying.

    python deployments/serve.py [INBOX]

No work pool, no worker. Uses the Prefect server that PREFECT_API_URL names, or one of its own,
whose address it prints. Ends with Ctrl-C.
"""

import sys

from flows.facility.serving import serve_all

if __name__ == "__main__":  # the processes of runs and workers import this module
    serve_all(inbox=sys.argv[1] if len(sys.argv) > 1 else None)
