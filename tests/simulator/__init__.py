"""A deterministic simulator of the state protocol: the real phases on models of Kafka and Redis.

worker/partition.py and worker/phases.py run unchanged; everything around them is modelled here, one
partition with several workers, and moved by one seeded random source. `python -m simulator` runs
any number of schedules; tests/simulator/test_*.py run 10,000 and the negative controls.

    model.py    records, states, and the truth: what the fold of a log is
    kafka.py    the input log, the group offset, the transaction coordinator
    store.py    Redis: one partition's hash and its scripts
    oracle.py   what must always hold
    owner.py    a partition's task in one worker: has the phases' questions answered
    answers.py  what Kafka and Redis answer
    tasks.py    what moves, one await point at a time
    worker.py   a worker's intake and pipeline
    commands.py an operator who does what a HALT tells
    faults.py   what goes wrong
    world.py    all of it together
    moves.py    who moves next
    schedules.py  many schedules, coverage, and how a violation is told
    controls.py   worlds that each lack one safeguard
    pair.py       two groups, and an operator who hands the outputs over
    pair_controls.py  the same without one safeguard of the handover
"""
