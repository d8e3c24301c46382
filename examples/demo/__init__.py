"""``python -m examples.demo``: several agent processes replay recorded runs and share state.

One of the processes is killed midway, its tasks are taken over, and at the end everything is read
again and compared with the recordings.
"""
