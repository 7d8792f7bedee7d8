"""Samplers of any `LatentEBM`, one file each: `sampler(key, ebm, num_samples)` yields `Draws` with what they cost.

All of them hold the noise of generator and controls of a sample fixed under the sample's own key, so each has a target
of its own, exp(log p_z(z) - E_C(G(z))) up to log Z, and sample n is the same in any batch, on any number of devices.
"""
