"""Networks by their names on the hub, `user/repo` or `user/repo@revision`, in place of folders.

    names.py     what such a name is
    folders.py   the folder that is meant by a path or a name
    fetch.py     fetching to the cache
    answers.py   what huggingface_hub says if something is at fault

What is fetched lies in huggingface_hub's cache (HF_HOME), in a folder for each commit, and is used
as any other folder. Only the files that a network's folder, a VAE's or a detector's has are
fetched: safetensors, JSON and plain texts, nothing that can carry code. HF_ENDPOINT, HF_TOKEN and
HF_HUB_OFFLINE mean what they mean to huggingface_hub.

Imports: errors, ranks.
"""
