"""Keys of a configuration that do not make a run another one."""

VOLATILE = (
    "output_folder", "cache_folder", "device", "noprogressbar", "num_workers", "download",
    "debug", "test_only", "overwrite", "folds", "ckpt_interval_minutes",
    "cache_gigabytes",
)  # fmt: skip
"""Keys that may differ when a run is continued: they do not change what it computes."""

WHERE = ("data_folder",)
"""Keys that may differ where the clips themselves are compared."""
