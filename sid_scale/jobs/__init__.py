"""A run as a process under a scheduler.

    lock.py           one run folder is one run;  stop.py  requests to stop
    attempts.py       the attempts of a run, as its logs record them;  journal.py  writes them
    slurm.py          what SLURM says of a job;  requeue.py  whether it is queued again
    launch.py         a launcher that no signal reaches;  stop_file.py  requests on other nodes
    node_task.py      the task of a node, and how it ended;  sick_nodes.py  those to leave out
    nodes.py          what SLURM knows of nodes;  status.py  how runs are

Imports: config, ranks, files.
"""
