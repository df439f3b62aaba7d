"""Language models: the roles on one base, generation, log-probabilities, and the models that ship."""

from astra_accel.models.kernel_notice import keep_back

keep_back()  # before any module here imports PEFT
