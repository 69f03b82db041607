"""Files that are damaged at random: what reads files from strangers must refuse them or read them, soon and in little memory.

`python -m tests.fuzz pictures --count 30000` is the long run; the test suite has a short one. A target is a module with

    def corpus() -> dict[str, bytes]: ...                                   whole files, by name
    def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes: ... a damaged one
    def examine(data: bytes) -> bool: ...                                   whether it was read; what it raises is a finding
"""
