"""Files damaged at random: every reader of untrusted files must read or refuse them, quickly and in little memory.

`python -m tests.fuzz pictures --count 30000` is the long run; the test suite has a short one. A target is a module with

    def corpus() -> dict[str, bytes]: ...                                   whole files, by name
    def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes: ... a damaged one
    def examine(data: bytes) -> bool: ...                                   whether it was read; any exception is a finding
"""
