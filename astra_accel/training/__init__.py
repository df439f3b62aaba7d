"""The trainer. In the order in which a training step goes through the files:

``harness`` collects an ``experience`` of all processes, whose loader hands batches to the ``engine``. That steps on
them through the ``step_module`` and updates with ``optim`` (``fsdp`` and ``zero`` are engines that spread weights);
``metrics``, ``outputs``, ``display`` and ``checkpoint`` tell and keep what happened; ``trainer`` is the loop,
``distributed`` what it asks of the other processes, and ``run`` makes a trainer of a configuration.
"""
