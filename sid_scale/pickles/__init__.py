"""Reading pickles of other programs without running them.

`reader.open_pickle` opens a file; `values` checks what is in it. A process of its own (`process`)
reads the file with a restricted `pickle.Unpickler` (`unpickler`) and returns plain data (`tree`).
"""
