"""The command `python -m mae_jax.data.prepare`."""

from mae_jax.data.prepare.writer import main

if __name__ == "__main__":
    main()
