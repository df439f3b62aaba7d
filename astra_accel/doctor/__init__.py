"""Whether a run can start on this machine, and if not, why: the report of `astra-accel doctor`.

``packages`` (what is installed), ``machine`` (cores, memory, devices), ``launches`` (which Accelerate configurations
fit), ``configuration`` (a run's YAML file), ``diagnosis`` (all of it), ``text``. All but ``configuration`` import
nothing but Python, since their task is to report missing packages.
"""
