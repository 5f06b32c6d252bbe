"""
Measuring the cost of a delivery: mqhooks and other sidecars under the same load, each part in its own process.

``python -m benchmarks`` runs all scenarios, ``python -m benchmarks relay --runs 1 --events 20000`` one small one.
"""
