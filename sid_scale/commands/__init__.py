"""The commands of `sid-scale`: each a module with `add_arguments(parser)` and `run(options)`.

A command parses its arguments and calls what does the work. Nothing heavy is imported before
`run`. May import everything.
"""
