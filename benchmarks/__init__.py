"""
What a delivery costs: mqhooks and other sidecars under the same load, each part a process of its own.

``python -m benchmarks`` runs all scenarios, ``python -m benchmarks relay --runs 1 --events 20000`` one of them, small.
"""
