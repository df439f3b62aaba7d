"""The trainer. In the order in which a training step goes through the files:

``trainer`` is the loop. ``harness`` collects an ``experience`` of all processes, whose loader hands batches to the
``updates``; the ``engine`` steps on them through the ``step_module`` and updates with ``optim`` (``fsdp`` and ``zero``
are engines that spread weights). ``metrics`` are the figures. ``callbacks`` are told what happened: ``outputs``,
``trackers``, ``display`` and ``best`` are such. ``keeping`` writes a ``checkpoint``, ``resume`` goes on from one;
``distributed`` is what processes say to one another, and ``run`` makes a trainer of a configuration.
"""
