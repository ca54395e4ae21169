"""Quantizers: latents to codes, and codes to the vectors they name. All compute in float32:
rounding latents to bfloat16 before a codebook search changes about one code in a hundred. Latents
and vectors are (B, dim, ...), codes (B, ...)."""
