"""Names of the engines. Never imports torch."""

ONE_PROCESS = ("cpu", "mps", "single_gpu")
LONE = {"cpu": "cpu", "mps": "mps", "cuda": "single_gpu"}  # device -> engine of one process
OFFLOADED = ("zero2_offload", "zero3_offload")
ZERO = ("zero1", "zero2", "zero3", *OFFLOADED)
ENGINES = (*ONE_PROCESS, "ddp", *ZERO)
