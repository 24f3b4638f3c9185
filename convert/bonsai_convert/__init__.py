# SPDX-License-Identifier: Apache-2.0
"""Convert FLUX.2-klein-style diffusers checkpoints to one model file. FORMAT.md describes it."""
