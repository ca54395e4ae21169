"""The autoencoder and the U-Net of latent diffusion, as published with CogVideo."""
