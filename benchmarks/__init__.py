"""One runnable file per claim: `python -m benchmarks.NAME`, figures in `benchmarks/results/NAME.json`."""
