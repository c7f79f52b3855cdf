"""What a facility's Prefect server holds, as code: pools, limits, deployments, automations, blocks.

All of it is made by `flows.facility.deploy.deploy`, the command `patchworks deploy`.
"""
