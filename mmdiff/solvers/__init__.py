"""Solvers: generator functions that move a state from ``sigmas[0]`` to ``sigmas[-1]``, one per published algorithm.

A solver sees a denoiser and a list of noise levels and nothing else. What it remembers between steps lives in local
variables, so two calls never influence each other. Levels may be scalars (shape (steps + 1,)) or differ within an
example (shape (steps + 1, *parts), parts broadcastable against x): where the level is 0 the state is data and comes
out bitwise as it went in.
"""

from mmdiff.solvers.euler import ancestral, euler
from mmdiff.solvers.heun import heun
from mmdiff.solvers.multistep import dpmpp_2m

__all__ = ["ancestral", "dpmpp_2m", "euler", "heun"]
