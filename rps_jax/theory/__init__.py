"""What drops cost: exact where there is a closed form, by Monte Carlo for any channel."""

from rps_jax.theory.bursts import whole_block as whole_block
from rps_jax.theory.exchange import Alphas as Alphas
from rps_jax.theory.exchange import alphas as alphas
from rps_jax.theory.exchange import contraction as contraction
from rps_jax.theory.exchange import drift as drift
from rps_jax.theory.exchange import largest_drop_rate as largest_drop_rate
from rps_jax.theory.gains import Gains as Gains
from rps_jax.theory.gains import gains as gains
from rps_jax.theory.gains import predicted_distance as predicted_distance
from rps_jax.theory.links import link_alphas as link_alphas
from rps_jax.theory.markov import burst_contractions as burst_contractions
from rps_jax.theory.markov import burst_limits as burst_limits
from rps_jax.theory.monte_carlo import Measured as Measured
from rps_jax.theory.monte_carlo import measure as measure
from rps_jax.theory.policies import Moments as Moments
from rps_jax.theory.policies import moments as moments
from rps_jax.theory.reliable import rounds_until_all as rounds_until_all
from rps_jax.theory.steady_state import kept as kept
from rps_jax.theory.steady_state import steady_consensus_distance as steady_consensus_distance
