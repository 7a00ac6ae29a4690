"""A seeded fault campaign against real workers, Kafka and Valkey.

`python -m campaign` (through `make faults`) runs schedules; schedule.py makes one from a seed
without any I/O, run.py carries it out, oracle.py judges it, report.py tells.
"""
