"""The command `mae_jax COMMAND [options]`, the same as `python -m mae_jax.COMMAND [options]`."""

import runpy
import sys

COMMANDS = {
    "train": "pre-train, fine-tune or probe a model",
    "evaluate": "evaluate any checkpoint on any data",
    "predict": "write the predictions of a classifier for any data",
    "embed": "write the features of any data: of each example, or of each patch",
    "convert": "write a checkpoint for PyTorch or Hugging Face, and back",
    "export": "write a model for other runtimes: ONNX or StableHLO",
    "plan": "estimate the memory and the hours of a run",
    "data.prepare": "pack pictures into array_record shards",
    "applications.inpaint": "fill the masked pixels of pictures",
    "applications.denoise": "denoise a picture, without clean data",
    "applications.anomaly": "learn from good examples what is unlike them, and score others",
    "applications.retrieval": "index examples, and search those that are similar",
}


def main() -> None:
    """Run the command that the first argument names; exit with status 2 if it is unknown."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    modules = {module.removeprefix("applications."): module for module in COMMANDS}
    if name in modules:
        sys.argv = [f"mae_jax {name}", *sys.argv[2:]]
        runpy.run_module(f"mae_jax.{modules[name]}", run_name="__main__", alter_sys=False)
        return
    usage = [f"{__doc__}\n"]
    usage += [f"  {short:14}{COMMANDS[module]}" for short, module in modules.items()]
    usage += ["\n`mae_jax COMMAND --help` lists the options of a command."]
    if name in ("-h", "--help"):
        print("\n".join(usage))
        return
    print(f"error: there is no command {name!r}\n\n" + "\n".join(usage), file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
