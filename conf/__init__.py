"""The packaged Hydra tree; installed as `bigctl.conf`."""
