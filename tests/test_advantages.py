"""Group-relative advantages against values by hand and float64 NumPy."""

import numpy as np
import pytest
import torch

from alignment_core.advantages import group_advantages, group_statistics, informative_first, overlong_penalties


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    # Means 1/4 and 1/2; unbiased std: sqrt((9/16 + 3/16) / 3) = 1/2, and sqrt(1/3).
    centered = group_advantages(rewards, eps=0.0, normalize_by_std=False)
    assert centered.tolist() == [[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]]
    normalized = group_advantages(rewards, eps=0.5, normalize_by_std=True)
    root = 3**-0.5 + 0.5
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.5 / root, 0.5 / root, -0.5 / root, -0.5 / root]])
    torch.testing.assert_close(normalized, expected)


def test_advantages_agree_with_numpy() -> None:
    rewards = np.random.default_rng(0).normal(size=(7, 5))
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    expected = centered / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-6)
    got = group_advantages(torch.tensor(rewards), 1e-6, normalize_by_std=True)
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_uniform_group_gets_exactly_zero_even_where_its_mean_is_rounded(normalize: bool) -> None:
    # The float32 mean of seven 0.1 need not be 0.1; divided by eps the difference is far from 0.
    rewards = torch.full((1, 7), 0.1)
    for eps in (0.0, 1e-6):
        assert torch.equal(group_advantages(rewards, eps, normalize), torch.zeros(1, 7))


@pytest.mark.parametrize("normalize", [True, False])
def test_groups_of_one_get_zero(normalize: bool) -> None:
    assert group_advantages(torch.tensor([[1.0], [0.0]]), 1e-6, normalize).tolist() == [[0.0], [0.0]]


def test_groups_do_not_touch_each_other() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [5.0, 1.0]])
    assert torch.equal(group_advantages(rewards, 1e-6, True)[0], group_advantages(other, 1e-6, True)[0])


def test_integer_rewards_are_not_divided_as_integers() -> None:
    assert group_advantages(torch.tensor([[1, 0]]), 0.0, False).tolist() == [[0.5, -0.5]]


def test_statistics_by_hand() -> None:
    statistics = group_statistics(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    # Whole batch: mean 3/4, variance (3/16 + 9/16) / 3 = 1/4. Within groups: sqrt(1/2) and 0.
    assert (statistics.mean, statistics.std, statistics.minimum, statistics.maximum) == (0.75, 0.5, 0.0, 1.0)
    assert statistics.group_std == pytest.approx(0.5**0.5 / 2)
    assert statistics.uniform_groups == 0.5
    single = group_statistics(torch.tensor([[1.0]]))
    assert (single.std, single.group_std, single.uniform_groups) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (torch.zeros(4), "problems, completions per problem"),
        (torch.zeros(0, 4), "problems, completions per problem"),
        (torch.tensor([[0.0, float("nan")]]), "check the reward function"),
    ],
)
def test_bad_rewards_are_refused(rewards: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(rewards, 1e-6, True)
    with pytest.raises(ValueError, match=message):
        group_statistics(rewards)


def test_leave_one_out_by_hand() -> None:
    # Each reward against the mean of the other two: 1 - 0, 0 - 1/2, 0 - 1/2.
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0]]), 1e-6, False, "leave_one_out")
    torch.testing.assert_close(got, torch.tensor([[1.0, -0.5, -0.5]]))


def test_leave_one_out_agrees_with_numpy() -> None:
    rewards = np.random.default_rng(1).normal(size=(6, 5))
    others = (rewards.sum(axis=1, keepdims=True) - rewards) / 4
    got = group_advantages(torch.tensor(rewards), 0.0, False, "leave_one_out")
    np.testing.assert_allclose(got, rewards - others, rtol=1e-12)


def test_leave_one_out_of_a_group_of_one_or_of_equals_is_zero() -> None:
    for rewards in (torch.tensor([[1.0], [0.0]]), torch.full((2, 7), 0.1)):
        assert not group_advantages(rewards, 1e-6, False, "leave_one_out").any()


def test_leave_one_out_is_not_divided_by_a_standard_deviation() -> None:
    with pytest.raises(ValueError, match="set normalize_by_std to False"):
        group_advantages(torch.tensor([[1.0, 0.0]]), 1e-6, True, "leave_one_out")


def test_overlong_penalties_by_hand() -> None:
    # Of 10 tokens the last 4 are the buffer: free up to 6, then a quarter a token.
    got = overlong_penalties([1, 6, 7, 8, 9, 10, 11], 10, 4)
    assert got == pytest.approx([0, 0, -0.25, -0.5, -0.75, -1, -1])
    assert overlong_penalties([8, 10], 10, 4, scale=0.5) == pytest.approx([-0.25, -0.5])
    assert overlong_penalties([9, 10], 10, 0) == [0.0, 0.0]


def test_groups_that_teach_come_first_topped_up_in_order() -> None:
    rewards = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert informative_first(rewards, 2) == [1, 3]
    assert informative_first(rewards, 4) == [0, 1, 3, 4]
    assert informative_first(rewards, 5) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="6 groups wanted, and there are 5"):
        informative_first(rewards, 6)
