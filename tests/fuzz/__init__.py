"""Fuzzing what swcompile reads: plans, manifests, weights, folders and model files, mutated by the thousand.

    python -m tests.fuzz --mutations 10000 --seed 0        all of it, in some minutes; --help names the other options
    python -m tests.fuzz --seed 0 --only 1234 --keep out/  one mutation again, and its files to look at

Each mutation must end as a clean success or as one SwnetError (on the command line: an exit code that is documented, and one
message), within 5 s, with nothing written outside the output folder and the process as it was before. A mutation depends on the
seed and its index alone, given one version of Python, torch and the sources.

    subjects.py      the good models that are mutated (models/, and the ones in examples/)
    raw.py documents.py plans.py weights.py sources.py statements.py folders.py     what is done to a file, from bytes to meaning
    sandbox.py       a folder and a process that can be compared with what they were before
    judge.py         whether a mutation ended as it should
    loading.py commands.py     mutations that Python code meets, and the command line
    cases.py         one mutation by its seed and index
    worker.py        a process that runs many; __main__.py starts it, watches it and counts
"""
