import warnings
from typing import get_args

import pytest
import torch
from transformers import optimization

from astra_accel.config import NO_WARMUP, Optimizer, Scheduler, TrainingConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.training.optim import OPTIMIZERS, LearningRate, build_optimizer, check_schedule

STEPS, WARMUP, LR = 12, 3, 0.5

SCHEDULES = {
    "linear": (lambda o: optimization.get_linear_schedule_with_warmup(o, WARMUP, STEPS), {}),
    "cosine": (lambda o: optimization.get_cosine_schedule_with_warmup(o, WARMUP, STEPS), {}),
    "cosine_with_restarts": (
        lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, WARMUP, STEPS, num_cycles=2),
        {"num_cycles": 2},
    ),
    "polynomial": (
        lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, WARMUP, STEPS, lr_end=0.1, power=2.0),
        {"lr_end": 0.1, "power": 2.0},
    ),
    "constant_with_warmup": (lambda o: optimization.get_constant_schedule_with_warmup(o, WARMUP), {}),
    "inverse_sqrt": (lambda o: optimization.get_inverse_sqrt_schedule(o, WARMUP), {}),
    "cosine_with_min_lr": (
        lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, STEPS, min_lr=0.05),
        {"min_lr": 0.05},
    ),
    "cosine_warmup_with_min_lr": (
        lambda o: optimization.get_cosine_with_min_lr_schedule_with_warmup_lr_rate(o, WARMUP, STEPS, min_lr=0.05),
        {"min_lr": 0.05},
    ),
    "warmup_stable_decay": (
        lambda o: optimization.get_wsd_schedule(o, WARMUP, num_decay_steps=4, num_training_steps=STEPS),
        {"num_decay_steps": 4},
    ),
}


def parameters():
    return [torch.nn.Parameter(torch.tensor([1.0, -2.0]))]


def build(scheduler, lr=LR, **options):
    config = TrainingConfiguration(lr=lr, training_steps=STEPS, lr_scheduler=scheduler, **options)
    optimizer = build_optimizer(config, parameters())
    return optimizer, LearningRate(config, optimizer)


def course(optimizer, learning_rate, rewards=(0.0,) * STEPS):
    """The learning rate of each training step, which makes one update or more."""
    values = []
    for step, reward in enumerate(rewards):
        values.append(learning_rate.value)
        for _ in range(1 + step % 3):
            optimizer.step()
        learning_rate.advance(reward)
    return values


class TestOptimizers:
    def test_there_is_one_for_each_name_of_the_configuration(self):
        assert set(OPTIMIZERS) == set(get_args(Optimizer))

    @pytest.mark.parametrize(
        ("name", "kind", "weight_decay"),
        [
            ("adam", torch.optim.Adam, 0),
            ("adamw", torch.optim.AdamW, 0.01),
            ("sgd", torch.optim.SGD, 0),
            ("rmsprop", torch.optim.RMSprop, 0),
            ("adagrad", torch.optim.Adagrad, 0),
        ],
    )
    def test_each_is_torchs_own_with_its_other_settings_at_their_defaults(self, name, kind, weight_decay):
        optimizer = build_optimizer(TrainingConfiguration(optimizer=name, lr=0.25), parameters())

        assert type(optimizer) is kind
        assert optimizer.defaults == kind(parameters(), lr=0.25).defaults
        assert optimizer.defaults["lr"] == 0.25
        assert optimizer.defaults["weight_decay"] == weight_decay

    @pytest.mark.parametrize("name", OPTIMIZERS)
    @pytest.mark.parametrize("weight_decay", [0.0, 0.3])
    def test_a_weight_decay_that_is_given_is_taken(self, name, weight_decay):
        config = TrainingConfiguration(optimizer=name, weight_decay=weight_decay)

        assert build_optimizer(config, parameters()).param_groups[0]["weight_decay"] == weight_decay

    def test_the_update_is_torchs(self):
        own, theirs = parameters(), parameters()
        for optimizer in (
            build_optimizer(TrainingConfiguration(optimizer="sgd", lr=0.1), own),
            torch.optim.SGD(theirs, lr=0.1),
        ):
            optimizer.param_groups[0]["params"][0].grad = torch.tensor([3.0, 4.0])
            optimizer.step()

        assert torch.equal(own[0], theirs[0])
        assert own[0].tolist() == pytest.approx([0.7, -2.4])


class TestLearningRate:
    def test_every_scheduler_is_compared(self):
        assert set(SCHEDULES) | set(NO_WARMUP) == set(get_args(Scheduler))

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_it_is_transformers_schedule_by_training_steps(self, name):
        make, options = SCHEDULES[name]
        reference = torch.optim.SGD(parameters(), lr=LR)
        schedule = make(reference)
        expected = []
        for _ in range(STEPS):
            expected.append(reference.param_groups[0]["lr"])
            reference.step()
            schedule.step()

        values = course(*build(name, warmup_steps=WARMUP, lr_scheduler_kwargs=options))

        assert values == expected
        assert values[0] < values[1] < max(values) == pytest.approx(LR)

    def test_a_training_step_may_make_no_update(self):
        _, learning_rate = build("linear", lr=1.0)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                learning_rate.advance(0.0)

        assert learning_rate.value == 0.75

    def test_a_linear_schedule_by_hand(self):
        values = course(*build("linear", warmup_steps=2, lr=1.0))

        assert values == pytest.approx([0, 0.5, 1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])

    def test_a_constant_schedule_is_constant(self):
        assert course(*build("constant")) == [LR] * STEPS

    def test_a_plateau_schedule_falls_when_the_mean_reward_stops_rising(self):
        optimizer, learning_rate = build(
            "reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 1, "factor": 0.5, "threshold": 0.0}
        )

        values = course(optimizer, learning_rate, [1.0, 2.0, 3.0, 3.0, 2.5, 4.0, 5.0, 5.0])

        assert values == [0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]

    @pytest.mark.parametrize("name", get_args(Scheduler))
    def test_it_goes_on_from_its_state(self, name):
        options = SCHEDULES[name][1] if name in SCHEDULES else {}
        rewards = [1.0] * STEPS
        whole = course(*build(name, lr_scheduler_kwargs=options), rewards)
        first, begun = build(name, lr_scheduler_kwargs=options)
        course(first, begun, rewards[:5])

        second, resumed = build(name, lr_scheduler_kwargs=options)
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(begun.state_dict())

        assert course(second, resumed, rewards[5:]) == whole[5:]

    @pytest.mark.parametrize(
        ("name", "options"), [("linear", {"min_lr": 0.1}), ("cosine_with_min_lr", {}), ("polynomial", {"lr_end": 0.9})]
    )
    def test_arguments_that_the_scheduler_does_not_take_are_named(self, name, options):
        with pytest.raises(ValueError, match=rf"lr_scheduler '{name}' does not take .*lr_scheduler_kwargs {options}"):
            build(name, lr_scheduler_kwargs=options)


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_a_schedule_that_works_is_found_to(scheduler):
    _, options = SCHEDULES[scheduler]
    check_schedule(
        TrainingConfiguration(
            lr=LR, training_steps=STEPS, lr_scheduler=scheduler, warmup_steps=WARMUP, lr_scheduler_kwargs=options
        )
    )


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("cosine", {"num_cycles": "x"}),
        ("cosine", {"cycles": 1}),
        ("polynomial", {"power": None}),
        ("polynomial", {"lr_end": 9.0}),
        ("cosine_with_min_lr", {}),
        ("reduce_lr_on_plateau", {"factor": "x"}),
        ("warmup_stable_decay", {}),
    ],
)
def test_arguments_that_a_schedule_does_not_take_are_found_before_the_first_step(scheduler, options):
    config = TrainingConfiguration(training_steps=STEPS, lr_scheduler=scheduler, lr_scheduler_kwargs=options)
    with pytest.raises(ConfigurationError, match=rf"'{scheduler}' does not take training.lr_scheduler_kwargs"):
        check_schedule(config)
