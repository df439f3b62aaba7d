"""Whether a run can start on this machine, and if not, why: what `astra-accel doctor` tells.

``packages`` (what is installed), ``machine`` (cores, memory, devices), ``launches`` (which Accelerate configurations
fit), ``configuration`` (a run's YAML file), ``diagnosis`` (all of it), ``text``. All but
``configuration`` needs nothing but Python to be imported, as a missing package is what it is there to tell.
"""
