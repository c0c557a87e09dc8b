"""Solvers: generator functions that move a state from ``sigmas[0]`` to ``sigmas[-1]``, one per published algorithm.

A solver sees a denoiser and a list of noise levels and nothing else. What it remembers between steps lives in local
variables, so two calls never influence each other. Levels may be scalars (shape (steps + 1,)) or differ within an
example (shape (steps + 1, *parts), parts broadcastable against x): where the level is 0 the state is data and comes
out bitwise as it went in.
"""

from mmdiff.solvers.adaptive import adaptive
from mmdiff.solvers.euler import ancestral, euler
from mmdiff.solvers.heun import heun
from mmdiff.solvers.multistep import (
    adams_bashforth,
    angular,
    deis,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    dpmpp_3m_sde,
    sa_solver,
    unipc,
)
from mmdiff.solvers.singlestep import dpm2, dpmpp_2s, rk4
from mmdiff.solvers.stochastic import consistency, dpmpp_sde, edm_stochastic, predictor_corrector
from mmdiff.solvers.tuned import tuned

__all__ = [
    "adams_bashforth",
    "adaptive",
    "ancestral",
    "angular",
    "consistency",
    "deis",
    "dpm2",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3m_sde",
    "dpmpp_sde",
    "edm_stochastic",
    "euler",
    "heun",
    "predictor_corrector",
    "rk4",
    "sa_solver",
    "tuned",
    "unipc",
]
