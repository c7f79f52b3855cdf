"""A folder that microscopes write into: each image is converted and segmented, once.

::

    walk ─► settle ─► arrivals ─► claim ─► sub-run per image ─► done | quarantined
    (listing) (memory) (companions) (ledger)  (process image)

Only `process_inbox`, `sub_runs` and `watch` know of Prefect.
"""
