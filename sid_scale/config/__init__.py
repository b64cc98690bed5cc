"""One run = one YAML file -> validated dataclasses.

    run.py     the whole run;  groups.py  its groups;  fields.py  types with their limits
    parse.py   YAML, overrides, and one clear error for each mistake
    table.py   docs/configuration.md

Imports nothing heavy: no torch, no DeepSpeed. The methods' settings are in methods/settings.py.
"""
