"""What people do with a pre-trained masked autoencoder, without training it any further.

Commands are run as `python -m mae_jax.applications.NAME`.
"""
