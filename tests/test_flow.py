"""The solvers against an equation whose solution is known, at the times that they announce."""

import math

import pytest
import torch
from torch import Tensor

from thinktalk.config import Solver
from thinktalk.model.flow import Schedule, evaluation_times, integrate, time_points

ORDERS: dict[Solver, int] = {"euler": 1, "midpoint": 2, "rk4": 4}


def solved(solver: Solver, num_points: int, *, sway: float = -1.0) -> float:
    """y(1) of y' = y cos(3 t), y(0) = 1; every slope is taken at the announced time."""
    points = time_points(num_points, sway=sway).double()
    times = iter(evaluation_times(solver, points).tolist())
    schedule = Schedule(solver, points.diff().tolist(), [], 0.0, 1)

    def slope(y: Tensor) -> Tensor:
        return y * math.cos(3 * next(times))

    end = integrate(torch.ones((), dtype=torch.float64), slope, schedule)
    assert next(times, None) is None  # it asked as often as it said
    return float(end)


@pytest.mark.parametrize("solver", ORDERS)
def test_order(solver: Solver) -> None:
    """Half the steps: 2, 4 and 16 times the error."""
    exact = math.exp(math.sin(3) / 3)
    errors = [abs(solved(solver, steps + 1) - exact) for steps in (16, 32)]
    assert errors[0] / errors[1] == pytest.approx(2 ** ORDERS[solver], rel=0.25)
    assert errors[1] < 0.05


def test_time_points() -> None:
    """Without sway equidistant; with the reference's, 1 - cos(pi t / 2)."""
    assert time_points(5, sway=0.0).tolist() == [0, 0.25, 0.5, 0.75, 1]
    expected = [1 - math.cos(math.pi / 2 * t) for t in (0, 1 / 3, 2 / 3, 1)]
    assert time_points(4, sway=-1.0).tolist() == pytest.approx(expected, abs=1e-6)


def test_evaluation_times() -> None:
    points = torch.tensor([0.0, 0.6, 1.0])
    found = {solver: evaluation_times(solver, points).tolist() for solver in ORDERS}
    assert found["euler"] == pytest.approx([0, 0.6])
    assert found["midpoint"] == pytest.approx([0, 0.3, 0.6, 0.8])
    thirds = [0, 0.2, 0.4, 0.6, 0.6, 0.6 + 0.4 / 3, 1 - 0.4 / 3, 1]
    assert found["rk4"] == pytest.approx(thirds)
