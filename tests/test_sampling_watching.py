"""What a running solve shows: the callback, what is left of it after Ctrl-C, and the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from problems import gaussian, path
from torch import Tensor

from pfgm_fast.ode import solve
from pfgm_fast.sampling import SOLVERS, sample
from pfgm_fast.solution import Solution, Status

every_solver = pytest.mark.parametrize("solver", list(SOLVERS))


def latents_of() -> Tensor:
    return 80 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TestWatching:
    @every_solver
    def test_callback_sees_where_the_rows_stand(self, solver: str) -> None:
        seen: list[dict[str, Any]] = []
        latents = latents_of()
        sample(gaussian, latents=latents, solver=solver, callback=seen.append)
        assert torch.equal(seen[0]["x"], latents)
        for i, info in enumerate(seen):
            assert set(info) == {"x", "i", "sigma", "denoised", "rows"}
            assert info["i"] == i
            sigma = info["sigma"].expand(len(info["rows"]))
            if solver != "unipc" or i == 0:  # whose answer is that at the predicted state
                assert torch.allclose(info["denoised"], gaussian(info["x"], sigma), atol=1e-9)
        assert seen[0]["sigma"].max() == 80

    @every_solver
    def test_callback_cannot_redirect_the_rows(self, solver: str) -> None:
        seen = []

        def scribble(info: dict[str, Any]) -> None:
            seen.append(info["rows"].clone())
            info["rows"].zero_()

        solution = sample(gaussian, latents=latents_of(), solver=solver, callback=scribble)
        assert torch.equal(solution.samples, sample(gaussian, latents=latents_of(), solver=solver).samples)
        assert seen[1].tolist() == list(range(6))

    @every_solver
    def test_callback_may_edit_the_state(self, solver: str) -> None:
        def shift(info: dict[str, Any]) -> None:
            if info["i"] == 2:
                info["x"][info["rows"] == 1] += 100

        edited = sample(gaussian, latents=latents_of(), solver=solver, callback=shift).raise_for_status()
        difference = (edited.samples - sample(gaussian, latents=latents_of(), solver=solver).samples).abs()
        assert (difference[1] > 0.1).all()
        assert difference[[0, 2, 3, 4, 5]].max() < 1e-12

    @pytest.mark.parametrize("machine", ["compiled", "torch"])
    def test_rows_go_on_from_an_edited_state(self, machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """As accurately as if they had begun there, and with no more than the one evaluation."""
        if machine == "torch":
            monkeypatch.setattr(solve, "COMPILED", {})
        stood: list[Tensor] = []

        def grow(info: dict[str, Any]) -> None:
            if info["i"] == 8:
                info["x"][info["rows"] == 1] *= 10
                stood.append(info["sigma"][1])

        options: dict[str, Any] = {"latents": latents_of(), "solver": "rk45", "rtol": 1e-7, "atol": 1e-7}
        plain, edited = sample(gaussian, **options), sample(gaussian, callback=grow, **options)
        exact = latents_of() / (1 + 80**2) ** 0.5 * (1 + 0.002**2) ** 0.5
        exact[1] *= 10
        assert len(stood) == 1
        assert ((edited.samples - exact).abs() / exact.abs()).max() < 1e-5
        assert edited.nfe[1] <= plain.nfe[1] + 1 + 6 * 10
        assert torch.equal(edited.nfe[2:], plain.nfe[2:])

    @every_solver
    def test_only_true_stops(self, solver: str) -> None:
        def answering(answer: object) -> Callable[[dict[str, Any]], object]:
            return lambda info: answer

        for answer in (None, 1, "yes", torch.ones(3)):
            assert sample(gaussian, latents=latents_of(), solver=solver, callback=answering(answer)).ok

    def test_callback_of_fixed_steps_gets_a_scalar_level(self) -> None:
        levels = []
        sample(gaussian, latents=latents_of(), steps=2, callback=lambda info: levels.append(float(info["sigma"])))
        assert levels == [80, 0.002]

    @every_solver
    def test_callback_stops(self, solver: str) -> None:
        states = []

        def stop(info: dict[str, Any]) -> bool:
            states.append(info["x"])
            return bool(info["i"] == 3)

        solution = sample(gaussian, latents=latents_of(), solver=solver, callback=stop, trajectory=True)
        assert solution.status.tolist() == [Status.STOPPED] * 6
        assert torch.equal(solution.samples, states[-1])
        assert len(states) == 4
        assert len(path(solution)[0]) == 3
        assert not solution.ok

    @every_solver
    def test_interruption_carries_the_solution(self, solver: str) -> None:
        calls = 0

        def interrupted(x: Tensor, sigma: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 12:
                raise KeyboardInterrupt
            return gaussian(x, sigma)

        with pytest.raises(KeyboardInterrupt) as stop:
            sample(interrupted, latents=latents_of(), solver=solver, trajectory=True)
        solution = vars(stop.value)["solution"]
        assert isinstance(solution, Solution)
        assert solution.status.tolist() == [Status.STOPPED] * 6
        assert (solution.accepted > 0).all()
        assert torch.equal(path(solution)[0][solution.accepted - 1, torch.arange(6)], solution.samples)
        assert solution.nfe.tolist() == [12] * 6

    @every_solver
    @pytest.mark.parametrize("end", ["done", "stop", "interrupt", "error"])
    def test_the_bar_is_closed_in_every_case(self, solver: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
        bars: list[Bar] = []

        class Bar:
            def __init__(self, total: float, **style: Any) -> None:
                self.total, self.n, self.closed = total, 0.0, False
                bars.append(self)

            def update(self, n: float) -> None:
                assert n >= 0
                self.n += n

            def set_postfix_str(self, note: str, refresh: bool) -> None:
                assert note.endswith("/6 rows")

            def __enter__(self) -> Bar:
                return self

            def __exit__(self, *error: object) -> None:
                self.closed = True

        def callback(info: dict[str, Any]) -> bool | None:
            if info["i"] < 3 or end == "done":
                return None
            if end == "stop":
                return True
            raise KeyboardInterrupt if end == "interrupt" else RuntimeError("from the callback")

        monkeypatch.setitem(sys.modules, "tqdm.auto", SimpleNamespace(tqdm=Bar))
        options: dict[str, Any] = {"latents": latents_of(), "solver": solver, "callback": callback, "progress": True}
        if end in ("done", "stop"):
            sample(gaussian, **options)
        else:
            with pytest.raises((KeyboardInterrupt, RuntimeError)):
                sample(gaussian, **options)
        (bar,) = bars
        assert bar.closed
        assert 0 < bar.n < bar.total or end == "done"
        assert bar.n == pytest.approx(bar.total) or end != "done"

    @every_solver
    def test_a_real_bar(self, solver: str, capsys: pytest.CaptureFixture[str]) -> None:
        sample(gaussian, latents=latents_of(), solver=solver, progress=True)
        assert "100%" in capsys.readouterr().err

    def test_no_bar_unless_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        sample(gaussian, latents=latents_of())
        assert capsys.readouterr().err == ""
