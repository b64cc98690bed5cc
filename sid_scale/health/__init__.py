"""Whether the devices and nodes of a run do what they should.

    device_check.py   a quick check of every device before a run begins
    own_time.py       how long a rank works without waiting for the others
    stragglers.py     the slowest rank, and ranks that stay slow

Imports: config, ranks.
"""
