"""Eight simulated devices for every test, set before JAX starts, no network, and little collection of garbage."""

import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_collection_finish() -> None:
    """Keep the collector off what is imported: tracing allocates much, and would have all of it walked again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
