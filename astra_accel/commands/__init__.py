"""The commands of `astra-accel`, one per file: ``add_commands`` registers it with argparse, the rest runs it.

Importing one imports nothing heavy: a command imports what it needs when it runs.
"""
