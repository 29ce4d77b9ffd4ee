from mae_jax.data.bad_examples import Unreadable  # noqa: F401
