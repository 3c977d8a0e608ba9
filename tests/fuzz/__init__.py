"""Random trials of what must never fail: networks, folders, arguments, kills.

    PYTHONPATH=tests python -m fuzz networks --count 5000 --out networks.jsonl      (or `make fuzz`)

Every trial is a function of its number and the seed, so that any of them can be looked at again (`--from N --count 1`).
Its outcome is one line of JSON; a file that holds some is gone on with.  What was found is in docs/reliability.md.
"""
