"""The commands of `astra-accel`, a file each: ``add_commands`` tells argparse of it, the rest runs it.

Importing one imports nothing heavy: what a command needs it imports when it runs.
"""
